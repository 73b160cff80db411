import com.grayscaleconsulting.bitacora.rpc.avro.KeyValueRawAvro;
import com.grayscaleconsulting.bitacora.rpc.avro.RPCHandlerAvro;
import java.io.ByteArrayOutputStream;
import java.io.File;
import java.io.IOException;
import java.io.PrintStream;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.util.HexFormat;
import java.util.List;
import org.apache.avro.AvroRemoteException;
import org.apache.avro.AvroRuntimeException;
import org.apache.avro.Protocol;
import org.apache.avro.Schema;
import org.apache.avro.generic.GenericData;
import org.apache.avro.generic.GenericRecord;
import org.apache.avro.io.BinaryEncoder;
import org.apache.avro.io.EncoderFactory;
import org.apache.avro.ipc.RPCContext;
import org.apache.avro.ipc.RPCPlugin;
import org.apache.avro.ipc.Server;
import org.apache.avro.ipc.Transceiver;
import org.apache.avro.ipc.generic.GenericRequestor;
import org.apache.avro.ipc.generic.GenericResponder;
import org.apache.avro.ipc.specific.SpecificRequestor;
import org.apache.avro.specific.SpecificDatumWriter;

/**
 * Prints the bytes that Java's library makes, a line of a name and hex each: {@code Golden <extended protocol>}.
 * Frames are what passed between Avro's own client and server.
 */
public final class Golden {
  private static final PrintStream OUT = new PrintStream(System.out, false, StandardCharsets.UTF_8);

  /** Longer than one buffer of Avro's. */
  private static final String LONG = "0123456789".repeat(900);

  private static final int PATIENCE_MS = 5_000;
  private static final long WRITTEN = 1_400_000_000_000L;
  private static final long EXPIRES = 1_900_000_000_000L;

  private Golden() {}

  public static void main(String[] args) {
    int status = 0;
    try {
      Protocol extended = Protocol.parse(new File(args[0]));
      OUT.println("# Made by Java's Avro: e2e/java-rpc/Golden.java, run by e2e/tests/suites/rpc_java.rs.");
      protocol("original", RPCHandlerAvro.PROTOCOL);
      protocol("extended", extended);
      records();
      Server server = serve(extended);
      unknown(server);
      known(server, extended);
      more(server);
      extended(server, extended);
      options(server, extended);
      original();
    } catch (Throwable failure) {
      failure.printStackTrace();
      status = 1;
    }
    OUT.flush();
    // Netty's threads would keep it alive.
    System.exit(status);
  }

  private static void protocol(String name, Protocol protocol) {
    OUT.println("protocol/" + name + "/text " + protocol);
    print("protocol/" + name + "/md5", protocol.getMD5());
  }

  private static void records() throws IOException {
    record("plain", "key", "value", WRITTEN, 3, 0, "123e4567-e89b-12d3-a456-426614174000");
    record("unicode", "clé ☃", "🦀 cle\u0301", 1, 1, EXPIRES, "u");
    record("marker", "deleted", "", WRITTEN, 3, -1, "123e4567-e89b-12d3-a456-426614174000");
    record("extremes", "", "", Long.MIN_VALUE, Integer.MAX_VALUE, Long.MAX_VALUE, "");
    record("long", "key", LONG, 0, Integer.MIN_VALUE, 0, "");
  }

  private static void record(String name, String key, String value, long timestamp, int source, long ttl, String uuid)
      throws IOException {
    KeyValueRawAvro record = new KeyValueRawAvro(key, value, timestamp, source, ttl, uuid);
    ByteArrayOutputStream bytes = new ByteArrayOutputStream();
    BinaryEncoder encoder = EncoderFactory.get().binaryEncoder(bytes, null);
    new SpecificDatumWriter<>(KeyValueRawAvro.class).write(record, encoder);
    encoder.flush();
    print("record/" + name, bytes.toByteArray());
  }

  /** A server of the original's own protocol. */
  private static void original() throws Exception {
    Server server = serve(RPCHandlerAvro.PROTOCOL);
    try (Conversation with = new Conversation("original", server)) {
      RPCHandlerAvro node = SpecificRequestor.getClient(RPCHandlerAvro.class, with.transceiver);
      with.call("getValue");
      check("value", node.getValue("key"));
    }
    server.close();
  }

  /** The original's client and the server have never met: the handshake has two rounds. Then all of its calls. */
  private static void unknown(Server server) throws Exception {
    try (Conversation with = new Conversation("unknown", server)) {
      RPCHandlerAvro node = SpecificRequestor.getClient(RPCHandlerAvro.class, with.transceiver);
      with.call("getValue");
      check("value", node.getValue("key"));
      with.call("getValue-missing");
      check(null, node.getValue("missing"));
      with.call("getValue-unicode");
      check("🦀 cle\u0301", node.getValue("clé ☃"));
      with.call("getValue-long");
      check(LONG, node.getValue("long"));
      with.call("setValue");
      node.setValue("key", "value");
      with.call("setValue-empty");
      node.setValue("key", "");
      with.call("setValue-long");
      node.setValue("long", LONG);
      with.call("delete");
      node.delete("key");
      with.call("getValue-refused");
      refuse("the key is missing or blank", () -> node.getValue(""));
    }
  }

  /** The server knows the original's client already, and in the end the client knows the server. */
  private static void known(Server server, Protocol extended) throws Exception {
    try (Conversation with = new Conversation("client-known", server)) {
      RPCHandlerAvro node = SpecificRequestor.getClient(RPCHandlerAvro.class, with.transceiver);
      with.call("getValue");
      check("value", node.getValue("key"));
      try (Transceiver again = Netty.connect(with.recorder.address(), PATIENCE_MS)) {
        with.call("reconnected");
        check("value", SpecificRequestor.getClient(RPCHandlerAvro.class, again).getValue("key"));
      }
    }
    try (Conversation with = new Conversation("ping", server)) {
      with.call("getRemote");
      RPCHandlerAvro node = SpecificRequestor.getClient(RPCHandlerAvro.class, with.transceiver);
      check(extended.toString(), SpecificRequestor.getRemote(node).toString());
      with.call("getValue");
      check("value", node.getValue("key"));
    }
    try (Conversation with = new Conversation("metadata", server)) {
      SpecificRequestor requestor = new SpecificRequestor(RPCHandlerAvro.class, with.transceiver);
      requestor.addRPCPlugin(new RPCPlugin() {
        @Override
        public void clientStartConnect(RPCContext context) {
          context.requestHandshakeMeta().put("who", bytes("a client"));
        }

        @Override
        public void clientSendRequest(RPCContext context) {
          context.requestCallMeta().put("trace", bytes("\u0000\u0001"));
        }
      });
      RPCHandlerAvro node = SpecificRequestor.getClient(RPCHandlerAvro.class, requestor);
      with.call("getValue");
      check("value", node.getValue("key"));
      with.call("setValue");
      node.setValue("key", "value");
    }
    try (Conversation with = new Conversation("same", server)) {
      GenericRequestor node = new GenericRequestor(extended, with.transceiver);
      with.call("getValue");
      check("value", node.request("getValue", request(extended, "getValue", "key")));
    }
  }

  /** A client of a message that the server lacks. */
  private static void more(Server server) throws Exception {
    Protocol more = Protocol.parse("""
        {"protocol": "RPCHandlerAvro", "namespace": "com.grayscaleconsulting.bitacora.rpc.avro", "types": [],
         "messages": {
           "increment": {"request": [{"name": "key", "type": "string"}], "response": "long"},
           "getValue": {"request": [{"name": "key", "type": "string"}], "response": ["null", "string"]}}}""");
    try (Conversation with = new Conversation("more-messages", server)) {
      GenericRequestor node = new GenericRequestor(more, with.transceiver);
      with.call("increment");
      refuse("increment", () -> node.request("increment", request(more, "increment", "key")));
      with.call("getValue");
      check("value", node.request("getValue", request(more, "getValue", "key")));
    }
  }

  /** Every message of the extended protocol. */
  private static void extended(Server server, Protocol protocol) throws Exception {
    try (Conversation with = new Conversation("extended", server)) {
      GenericRequestor node = new GenericRequestor(protocol, with.transceiver);
      with.call("getRecord");
      node.request("getRecord", request(protocol, "getRecord", "key"));
      with.call("getRecord-missing");
      node.request("getRecord", request(protocol, "getRecord", "missing"));
      with.call("getRecord-deleted");
      node.request("getRecord", request(protocol, "getRecord", "deleted"));
      with.call("getRecord-refused");
      refuse("BAD_REQUEST", () -> node.request("getRecord", request(protocol, "getRecord", "")));
      with.call("setRecord");
      node.request("setRecord", request(protocol, "setRecord", "key", "value", 60_000L));
      with.call("deleteRecord");
      node.request("deleteRecord", request(protocol, "deleteRecord", "deleted"));
      with.call("batch");
      node.request("batch", request(protocol, "batch", List.of(
          operation(protocol, "GET", "key", "", 0),
          operation(protocol, "GET", "missing", "", 0),
          operation(protocol, "SET", "key", "value", 60_000L),
          operation(protocol, "DELETE", "deleted", "", 0),
          operation(protocol, "SET", "", "value", 0))));
      with.call("batch-empty");
      node.request("batch", request(protocol, "batch", List.of()));
      with.call("batch-refused");
      refuse("TOO_LARGE", () -> node.request("batch", request(protocol, "batch", List.of(
          operation(protocol, "GET", "too many", "", 0)))));
      with.call("scan");
      node.request("scan", request(protocol, "scan", "k", "ka", "kz", 2, ""));
      with.call("scan-empty");
      node.request("scan", request(protocol, "scan", "none", "", "", 1000, ""));
    }
  }

  /** Every message with options. */
  private static void options(Server server, Protocol protocol) throws Exception {
    try (Conversation with = new Conversation("options", server)) {
      GenericRequestor node = new GenericRequestor(protocol, with.transceiver);
      with.call("readRecord");
      node.request("readRecord", request(protocol, "readRecord", "key", "session", "0:12,3:40", 2_000L, 250L));
      with.call("readRecord-refused");
      refuse("BAD_REQUEST", () -> node.request("readRecord", request(protocol, "readRecord", "", "", "", 0L, 0L)));
      with.call("writeRecord");
      node.request("writeRecord", request(protocol, "writeRecord", "key", "value", 60_000L, "3:42", "a uuid", "all", 250L));
      with.call("writeRecord-not-met");
      node.request("writeRecord", request(protocol, "writeRecord", "taken", "value", 0L, "absent", "", "", 0L));
      with.call("writeRecord-unsupported");
      refuse("UNSUPPORTED", () -> node.request(
          "writeRecord", request(protocol, "writeRecord", "unsupported", "value", 0L, "*", "", "", 0L)));
      with.call("removeRecord");
      node.request("removeRecord", request(protocol, "removeRecord", "missing", "*", "", "here", 0L));
      with.call("batchRecords");
      node.request("batchRecords", request(protocol, "batchRecords", List.of(
          recordOperation(protocol, "GET", "key", "", 0, "strong", "", 1_000L, "", "", "", 250L),
          recordOperation(protocol, "SET", "key", "value", 60_000L, "", "", 0L, "*", "a uuid", "", 0L),
          recordOperation(protocol, "DELETE", "taken", "", 0, "", "", 0L, "0:7", "", "all", 0L),
          recordOperation(protocol, "SET", "unsupported", "", 0, "", "", 0L, "absent", "", "", 0L))));
      with.call("scanRecords");
      node.request("scanRecords", request(protocol, "scanRecords", "k", "ka", "kz", 2, "", "latest", "", 0L, 250L));
      with.call("readChanges");
      node.request("readChanges", request(protocol, "readChanges", "a token", "k", "", 100, 30_000L, true, false));
    }
  }

  /** Answers from fixed data. */
  private static Server serve(Protocol protocol) throws Exception {
    GenericResponder responder = new GenericResponder(protocol) {
      @Override
      public Object respond(Protocol.Message message, Object arguments) throws Exception {
        GenericRecord request = (GenericRecord) arguments;
        String key = request.getSchema().getField("key") == null ? null : request.get("key").toString();
        if ("".equals(key) && !message.getName().equals("readChanges")) {
          String sentence = "the key is missing or blank";
          throw new AvroRemoteException(
              message.getErrors().getTypes().size() == 1 ? sentence
                  : message.getErrors().getTypes().get(1).getName().equals("CallError")
                  ? record(type(protocol, "CallError"), symbol(protocol, "CallErrorCode", "BAD_REQUEST"), sentence)
                  : error(protocol, "BAD_REQUEST", sentence));
        }
        return switch (message.getName()) {
          case "getValue" -> switch (key) {
            case "missing" -> null;
            case "long" -> LONG;
            case "clé ☃" -> "🦀 cle\u0301";
            default -> "value";
          };
          case "setValue", "delete" -> null;
          case "getRecord" -> read(protocol, key);
          case "setRecord" -> written(protocol, EXPIRES);
          case "deleteRecord" -> written(protocol, -1);
          case "batch" -> batch(protocol, (List<?>) request.get("operations"));
          case "scan" -> page(protocol, request.get("prefix").toString());
          case "readRecord" -> read(protocol, key);
          case "writeRecord", "removeRecord" -> {
            Object answer = recordWritten(protocol, key, message.getName().equals("writeRecord") ? EXPIRES : -1);
            if (answer instanceof GenericRecord record && record.getSchema().isError()) {
              throw new AvroRemoteException(answer);
            }
            yield answer;
          }
          case "batchRecords" -> ((List<?>) request.get("operations")).stream().map(each -> {
            GenericRecord operation = (GenericRecord) each;
            String of = operation.get("key").toString();
            return switch (operation.get("kind").toString()) {
              case "GET" -> read(protocol, of);
              case "SET" -> recordWritten(protocol, of, EXPIRES);
              default -> recordWritten(protocol, of, -1);
            };
          }).toList();
          case "scanRecords" -> {
            GenericRecord page = page(protocol, request.get("prefix").toString());
            yield record(type(protocol, "RecordPage"), page.get("records"), page.get("cursor"),
                List.of(position(protocol, 0, 7), position(protocol, 3, 1L << 33)));
          }
          case "readChanges" -> record(type(protocol, "ChangePage"),
              List.of(
                  record(type(protocol, "StoredRecord"), keyValue(protocol, "ka"), position(protocol, 0, 7)),
                  record(type(protocol, "DeletedKey"), "kb", position(protocol, 3, 42), WRITTEN,
                      symbol(protocol, "DeleteReason", "EXPIRED")),
                  record(type(protocol, "Gap"), "a reason")),
              "the next token", true, List.of(position(protocol, 0, 7), position(protocol, 3, 42)));
          default -> throw new IllegalStateException(message.getName());
        };
      }
    };
    // A handshake can carry metadata back, and so can an answer.
    responder.addRPCPlugin(new RPCPlugin() {
      @Override
      public void serverConnecting(RPCContext context) {
        if (!context.requestHandshakeMeta().isEmpty()) {
          context.responseHandshakeMeta().put("node", bytes("a server"));
        }
      }

      @Override
      public void serverSendResponse(RPCContext context) {
        if (!context.requestCallMeta().isEmpty()) {
          context.responseCallMeta().put("trace", bytes("\u0002"));
        }
      }
    });
    return Netty.serve(responder, new InetSocketAddress(InetAddress.getLoopbackAddress(), 0));
  }

  private static Schema type(Protocol protocol, String name) {
    return protocol.getType(protocol.getNamespace() + "." + name);
  }

  private static GenericRecord record(Schema schema, Object... fields) {
    GenericRecord record = new GenericData.Record(schema);
    for (int field = 0; field < fields.length; field++) {
      record.put(field, fields[field]);
    }
    return record;
  }

  private static Object symbol(Protocol protocol, String type, String symbol) {
    return new GenericData.EnumSymbol(type(protocol, type), symbol);
  }

  private static GenericRecord position(Protocol protocol, int partition, long offset) {
    return record(type(protocol, "Position"), partition, offset);
  }

  private static GenericRecord keyValue(Protocol protocol, String key) {
    Schema schema = type(protocol, "KeyValueRawAvro");
    return record(schema, key, "value of " + key, WRITTEN, 1, 0L, "uuid of " + key);
  }

  private static GenericRecord read(Protocol protocol, String key) {
    Object[] fields = switch (key) {
      case "missing" -> new Object[] {null, position(protocol, 2, -1), null, symbol(protocol, "ServedFrom", "STORE")};
      case "deleted" -> new Object[] {
        null, position(protocol, 1, 1L << 40), WRITTEN, symbol(protocol, "ServedFrom", "CACHE"),
      };
      default -> new Object[] {
        keyValue(protocol, key), position(protocol, 3, 42), WRITTEN, symbol(protocol, "ServedFrom", "PEER"),
      };
    };
    return record(type(protocol, "ReadAnswer"), fields);
  }

  private static GenericRecord written(Protocol protocol, long ttl) {
    return record(type(protocol, "WriteAnswer"), position(protocol, 0, 1000), WRITTEN, ttl, "a uuid");
  }

  /** What a write with options comes to. */
  private static GenericRecord recordWritten(Protocol protocol, String key, long ttl) {
    return switch (key) {
      case "taken" -> record(type(protocol, "NotMetAnswer"), keyValue(protocol, key), position(protocol, 0, 7));
      case "missing" -> record(type(protocol, "NotMetAnswer"), null, position(protocol, 2, -1));
      case "unsupported" -> record(
          type(protocol, "CallError"), symbol(protocol, "CallErrorCode", "UNSUPPORTED"), "not on this topic");
      default -> record(
          type(protocol, "WrittenAnswer"), position(protocol, 0, 1000), WRITTEN, ttl, "a uuid",
          List.of("node-2:8080", "node-3:8080"));
    };
  }

  private static GenericRecord recordOperation(Protocol protocol, Object... fields) {
    fields[0] = symbol(protocol, "OperationKind", fields[0].toString());
    fields[3] = ((Number) fields[3]).longValue();
    return record(type(protocol, "RecordOperation"), fields);
  }

  private static GenericRecord error(Protocol protocol, String code, String message) {
    return record(type(protocol, "RequestError"), symbol(protocol, "ErrorCode", code), message);
  }

  private static GenericRecord operation(Protocol protocol, String kind, String key, String value, long ttl) {
    return record(type(protocol, "Operation"), symbol(protocol, "OperationKind", kind), key, value, ttl);
  }

  private static List<GenericRecord> batch(Protocol protocol, List<?> operations) throws AvroRemoteException {
    if (operations.size() == 1) {
      throw new AvroRemoteException(error(protocol, "TOO_LARGE", "too many"));
    }
    return operations.stream().map(each -> {
      GenericRecord operation = (GenericRecord) each;
      String key = operation.get("key").toString();
      if (key.isEmpty()) {
        return error(protocol, "BAD_REQUEST", "the key is missing or blank");
      }
      return switch (operation.get("kind").toString()) {
        case "GET" -> read(protocol, key);
        case "SET" -> written(protocol, EXPIRES);
        default -> written(protocol, -1);
      };
    }).toList();
  }

  private static GenericRecord page(Protocol protocol, String prefix) {
    Schema stored = type(protocol, "StoredRecord");
    List<GenericRecord> records = prefix.equals("none") ? List.of() : List.of(
        record(stored, keyValue(protocol, "ka"), position(protocol, 0, 7)),
        record(stored, keyValue(protocol, "kb"), position(protocol, 3, 1L << 33)));
    return record(type(protocol, "ScanPage"), records, records.isEmpty() ? "" : "a cursor");
  }

  private static GenericRecord request(Protocol protocol, String message, Object... arguments) {
    return record(protocol.getMessages().get(message).getRequest(), arguments);
  }

  /** One client's frames, under a name. */
  private static final class Conversation implements AutoCloseable {
    private final String name;
    private final Recorder recorder;
    private final Transceiver transceiver;

    Conversation(String name, Server server) throws IOException {
      this.name = name;
      // Another port is another server to the requestor, that it has never met.
      recorder = new Recorder(server.getPort());
      transceiver = Netty.connect(recorder.address(), PATIENCE_MS);
    }

    void call(String call) {
      recorder.call(name + "/" + call);
    }

    @Override
    public void close() throws IOException {
      transceiver.close();
      recorder.close();
      recorder.frames().forEach(Golden::print);
    }
  }

  private interface Call {
    void run() throws Exception;
  }

  private static void refuse(String sentence, Call call) throws Exception {
    try {
      call.run();
    } catch (AvroRemoteException | AvroRuntimeException refusal) {
      if (String.valueOf(refusal.getMessage()).contains(sentence)) {
        return;
      }
      throw refusal;
    }
    throw new AssertionError("no refusal: " + sentence);
  }

  private static void check(String expected, Object seen) {
    if (!String.valueOf(expected).equals(String.valueOf(seen))) {
      throw new AssertionError(seen + ", not " + expected);
    }
  }

  private static ByteBuffer bytes(String text) {
    return ByteBuffer.wrap(text.getBytes(StandardCharsets.UTF_8));
  }

  private static void print(String name, byte[] bytes) {
    OUT.println(name + " " + HexFormat.of().formatHex(bytes));
  }
}
