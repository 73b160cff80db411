import com.grayscaleconsulting.bitacora.rpc.avro.RPCHandlerAvro;
import java.io.BufferedReader;
import java.io.File;
import java.io.IOException;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.net.InetSocketAddress;
import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.List;
import java.util.Objects;
import java.util.concurrent.Callable;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.TimeoutException;
import java.util.concurrent.atomic.AtomicBoolean;
import org.apache.avro.AvroRemoteException;
import org.apache.avro.AvroRuntimeException;
import org.apache.avro.Protocol;
import org.apache.avro.Schema;
import org.apache.avro.generic.GenericData;
import org.apache.avro.generic.GenericRecord;
import org.apache.avro.ipc.CallFuture;
import org.apache.avro.ipc.RPCContext;
import org.apache.avro.ipc.RPCPlugin;
import org.apache.avro.ipc.Transceiver;
import org.apache.avro.ipc.generic.GenericRequestor;
import org.apache.avro.ipc.specific.SpecificRequestor;

/**
 * Calls a node as the original's clients did: {@code Scenarios <scenario> <host> <port> [<extended protocol>]}.
 * Prints {@code ok <call>} for each call that answered as it should; the first that doesn't ends it.
 */
public final class Scenarios {
  /** For what comes through the log, and for a call that never comes back. */
  private static final long PATIENCE_MS = 20_000;

  /** The default of MAX_VALUE_BYTES. */
  private static final int LARGEST_VALUE = 1 << 20;
  private static final int LONGEST_KEY = 1024;

  private static final PrintStream OUT = new PrintStream(System.out, true, StandardCharsets.UTF_8);

  private final InetSocketAddress address;
  private final List<Transceiver> open = new ArrayList<>();

  private Scenarios(InetSocketAddress address) {
    this.address = address;
  }

  public static void main(String[] args) {
    int status = 0;
    try {
      Scenarios scenarios = new Scenarios(new InetSocketAddress(args[1], Integer.parseInt(args[2])));
      switch (args[0]) {
        case "calls" -> scenarios.calls();
        case "unicode" -> scenarios.unicode();
        case "large" -> scenarios.large();
        case "refusals" -> scenarios.refusals();
        case "threads" -> scenarios.threads();
        case "pipelined" -> scenarios.pipelined();
        case "metadata" -> scenarios.metadata();
        case "remote_protocol" -> scenarios.remoteProtocol();
        case "more_messages" -> scenarios.moreMessages();
        case "fewer_messages" -> scenarios.fewerMessages();
        case "second_connection" -> scenarios.secondConnection();
        case "restart" -> scenarios.restart();
        case "restart_under_load" -> scenarios.restartUnderLoad();
        case "extended" -> scenarios.extended(Protocol.parse(new File(args[3])));
        default -> throw new IllegalArgumentException("no scenario " + args[0]);
      }
      for (Transceiver transceiver : scenarios.open) {
        transceiver.close();
      }
    } catch (Throwable failure) {
      failure.printStackTrace();
      status = 1;
    }
    // Netty's threads would keep a failed program alive.
    System.exit(status);
  }

  private void calls() throws Exception {
    RPCHandlerAvro node = client(RPCHandlerAvro.class);
    expect("getValue of a missing key", null, node.getValue("java missing"));
    done("setValue", () -> node.setValue("java key", "one"));
    eventually("getValue", "one", () -> node.getValue("java key"));
    done("setValue again", () -> node.setValue("java key", "two"));
    eventually("getValue of what is newer", "two", () -> node.getValue("java key"));
    done("delete", () -> node.delete("java key"));
    eventually("getValue of a deleted key", null, () -> node.getValue("java key"));
    done("delete of a missing key", () -> node.delete("java missing"));
    expect("getValue after it", null, node.getValue("java missing"));
    done("setValue of a deleted key", () -> node.setValue("java key", "three"));
    eventually("getValue of what is back", "three", () -> node.getValue("java key"));
  }

  private void unicode() throws Exception {
    RPCHandlerAvro node = client(RPCHandlerAvro.class);
    // Composed and decomposed are two keys: nothing is normalized.
    String[] texts = {
      "clé ☃",
      "cle\u0301 ☃",
      "🦀𝔘𝕟𝕚",
      // A family joined by zero-width joiners, a skin tone; right to left, with its mark.
      "\ud83d\udc69\u200d\ud83d\udc67\ud83c\udffd",
      "\u0645\u0631\u062d\u0628\u0627\u200e \u05e9\u05dc\u05d5\u05dd",
      "a&b=c%d+e/f",
      "line\nand\ttab\u0000nul",
      "🦀".repeat(200),
    };
    for (String text : texts) {
      String shown = escaped(text);
      done("setValue of " + shown, () -> node.setValue(text, "value of " + text));
      eventually("getValue of " + shown, "value of " + text, () -> node.getValue(text));
    }
    done("setValue of nothing", () -> node.setValue("java empty", ""));
    eventually("getValue of nothing", "", () -> node.getValue("java empty"));
  }

  private void large() throws Exception {
    RPCHandlerAvro node = client(RPCHandlerAvro.class);
    StringBuilder text = new StringBuilder();
    for (int line = 0; text.length() < LARGEST_VALUE; line++) {
      text.append("line ").append(line).append('\n');
    }
    String value = text.substring(0, LARGEST_VALUE);
    done("setValue of 1 MiB", () -> node.setValue("java large", value));
    eventually("getValue of 1 MiB", value, () -> node.getValue("java large"));
    String astral = "🦀".repeat(LARGEST_VALUE / 4);
    done("setValue of 1 MiB in four-byte characters", () -> node.setValue("java large", astral));
    eventually("getValue of 1 MiB in four-byte characters", astral, () -> node.getValue("java large"));
    String key = "k".repeat(LONGEST_KEY);
    done("setValue of the longest key", () -> node.setValue(key, "value"));
    eventually("getValue of the longest key", "value", () -> node.getValue(key));
  }

  private void refusals() throws Exception {
    Transceiver transceiver = connect();
    RPCHandlerAvro node = SpecificRequestor.getClient(RPCHandlerAvro.class, transceiver);
    String tooLarge = "x".repeat(LARGEST_VALUE + 1);
    String tooLong = "k".repeat(LONGEST_KEY + 1);
    String ofValue = "the value has 1048577 bytes; a value has at most 1048576 (MAX_VALUE_BYTES)";
    String ofKey = "the key has 1025 bytes; a key has at most 1024";
    String ofBlank = "the key is missing or blank";
    refuse("setValue of a value that is too large", ofValue, () -> node.setValue("java refused", tooLarge));
    for (String blank : new String[] {"", " \t"}) {
      String shown = escaped(blank);
      refuse("getValue of a blank key " + shown, ofBlank, () -> node.getValue(blank));
      refuse("setValue of a blank key " + shown, ofBlank, () -> node.setValue(blank, "value"));
      refuse("delete of a blank key " + shown, ofBlank, () -> node.delete(blank));
    }
    refuse("getValue of a key that is too long", ofKey, () -> node.getValue(tooLong));
    refuse("setValue of a key that is too long", ofKey, () -> node.setValue(tooLong, "value"));
    refuse("delete of a key that is too long", ofKey, () -> node.delete(tooLong));
    expect("the connection after them", true, transceiver.isConnected());
    expect("getValue after them", null, node.getValue("java refused"));
  }

  private void threads() throws Exception {
    int threads = 32;
    int keys = 8;
    RPCHandlerAvro node = client(RPCHandlerAvro.class);
    ExecutorService pool = Executors.newFixedThreadPool(threads);
    CountDownLatch together = new CountDownLatch(threads);
    List<Future<Integer>> results = new ArrayList<>();
    for (int thread = 0; thread < threads; thread++) {
      String mine = "java thread " + thread;
      results.add(pool.submit(() -> {
        together.countDown();
        together.await();
        // Of another length each time, so that a frame that is cut wrongly shows.
        for (int key = 0; key < keys; key++) {
          node.setValue(mine + " " + key, mine + " has " + key + ".".repeat(37 * key));
        }
        int answers = 0;
        for (int round = 0; round < 25; round++) {
          for (int key = 0; key < keys; key++) {
            String name = mine + " " + key;
            String value = mine + " has " + key + ".".repeat(37 * key);
            if (round == 0) {
              await(value, () -> node.getValue(name));
            } else {
              check(name, value, node.getValue(name));
            }
            check("a missing key", null, node.getValue(name + " missing"));
            answers += 2;
          }
        }
        return answers;
      }));
    }
    for (int thread = 0; thread < threads; thread++) {
      int answers = results.get(thread).get(2 * PATIENCE_MS, TimeUnit.MILLISECONDS);
      expect("the answers of thread " + thread, 25 * keys * 2, answers);
    }
    pool.shutdown();
  }

  private void pipelined() throws Exception {
    RPCHandlerAvro.Callback node = client(RPCHandlerAvro.Callback.class);
    int calls = 1000;
    List<CallFuture<Void>> writes = new ArrayList<>();
    for (int call = 0; call < calls; call++) {
      CallFuture<Void> done = new CallFuture<>();
      node.setValue("java pipelined " + call, "value " + call, done);
      writes.add(done);
    }
    for (CallFuture<Void> done : writes) {
      check("setValue", null, done.get(PATIENCE_MS, TimeUnit.MILLISECONDS));
    }
    ok(calls + " setValue in flight");
    for (int call = 0; call < calls; call++) {
      String key = "java pipelined " + call;
      await("value " + call, () -> node.getValue(key));
    }
    List<CallFuture<CharSequence>> reads = new ArrayList<>();
    for (int call = 0; call < calls; call++) {
      CallFuture<CharSequence> value = new CallFuture<>();
      node.getValue("java pipelined " + call, value);
      reads.add(value);
    }
    for (int call = 0; call < calls; call++) {
      check("getValue", "value " + call, reads.get(call).get(PATIENCE_MS, TimeUnit.MILLISECONDS));
    }
    ok(calls + " getValue in flight");
    CallFuture<CharSequence> refused = new CallFuture<>();
    CallFuture<CharSequence> read = new CallFuture<>();
    node.getValue("", refused);
    node.getValue("java pipelined 0", read);
    check("getValue beside a refused one", "value 0", read.get(PATIENCE_MS, TimeUnit.MILLISECONDS));
    refused.await(PATIENCE_MS, TimeUnit.MILLISECONDS);
    if (refused.getError() == null) {
      throw new AssertionError("a blank key was not refused");
    }
    ok("a refusal among them");
  }

  private void metadata() throws Exception {
    SpecificRequestor requestor = new SpecificRequestor(RPCHandlerAvro.class, connect());
    List<String> seen = new ArrayList<>();
    requestor.addRPCPlugin(new RPCPlugin() {
      @Override
      public void clientStartConnect(RPCContext context) {
        context.requestHandshakeMeta().put("who", bytes("a Java client"));
      }

      @Override
      public void clientFinishConnect(RPCContext context) {
        seen.add("handshake");
      }

      @Override
      public void clientSendRequest(RPCContext context) {
        context.requestCallMeta().put("trace", bytes("0123456789abcdef"));
        context.requestCallMeta().put("more", bytes("x".repeat(5000)));
        context.requestCallMeta().put("", bytes(""));
      }

      @Override
      public void clientReceiveResponse(RPCContext context) {
        seen.add("response");
      }
    });
    RPCHandlerAvro node = SpecificRequestor.getClient(RPCHandlerAvro.class, requestor);
    done("setValue with metadata", () -> node.setValue("java metadata", "value"));
    eventually("getValue with metadata", "value", () -> node.getValue("java metadata"));
    expect("the metadata of handshakes was read", true, seen.contains("handshake"));
    expect("the metadata of answers was read", true, seen.contains("response"));
  }

  private void remoteProtocol() throws Exception {
    RPCHandlerAvro node = client(RPCHandlerAvro.class);
    // A handshake with a call of the message "".
    Protocol remote = SpecificRequestor.getRemote(node);
    expect("the node's protocol", RPCHandlerAvro.PROTOCOL.getName(), remote.getName());
    for (String message : RPCHandlerAvro.PROTOCOL.getMessages().keySet()) {
      Protocol.Message ours = RPCHandlerAvro.PROTOCOL.getMessages().get(message);
      Protocol.Message theirs = remote.getMessages().get(message);
      expect("the request of the node's " + message, ours.getRequest(), theirs.getRequest());
      expect("the response of the node's " + message, ours.getResponse(), theirs.getResponse());
      expect("the errors of the node's " + message, ours.getErrors(), theirs.getErrors());
    }
    expect("getValue after it", null, node.getValue("java missing"));
  }

  private void moreMessages() throws Exception {
    Protocol protocol = Protocol.parse("""
        {"protocol": "RPCHandlerAvro", "namespace": "com.grayscaleconsulting.bitacora.rpc.avro", "types": [],
         "messages": {
           "increment": {"request": [{"name": "key", "type": "string"}], "response": "long"},
           "getValue": {"request": [{"name": "key", "type": "string"}], "response": ["null", "string"]}}}""");
    GenericRequestor node = new GenericRequestor(protocol, connect());
    // Once with the handshake and once without.
    for (int call = 0; call < 2; call++) {
      refuse("increment, which no node has", "Not a remote message: increment",
          () -> node.request("increment", request(protocol, "increment", "key")));
    }
    expect("getValue after it", null, node.request("getValue", request(protocol, "getValue", "java missing")));
  }

  private void fewerMessages() throws Exception {
    Protocol protocol = Protocol.parse("""
        {"protocol": "RPCHandlerAvro", "namespace": "com.grayscaleconsulting.bitacora.rpc.avro", "types": [],
         "messages": {
           "setValue": {"request": [{"name": "key", "type": "string"}, {"name": "value", "type": "string"}],
                        "response": "null"},
           "getValue": {"request": [{"name": "key", "type": "string"}], "response": ["null", "string"]}}}""");
    GenericRequestor node = new GenericRequestor(protocol, connect());
    expect("setValue", null, node.request("setValue", request(protocol, "setValue", "java fewer", "value")));
    eventually("getValue", "value", () -> node.request("getValue", request(protocol, "getValue", "java fewer")));
  }

  private void secondConnection() throws Exception {
    // The second knows the node's hash from the first, and the node the client's.
    for (String which : new String[] {"the first", "the second", "the third"}) {
      RPCHandlerAvro node = client(RPCHandlerAvro.class);
      done("setValue over " + which, () -> node.setValue("java connection", which));
      eventually("getValue over " + which, which, () -> node.getValue("java connection"));
    }
  }

  private void restart() throws Exception {
    RPCHandlerAvro node = client(RPCHandlerAvro.class);
    done("setValue before", () -> node.setValue("java restart", "before"));
    eventually("getValue before", "before", () -> node.getValue("java restart"));
    awaitRestart();
    ExecutorService caller = Executors.newCachedThreadPool();
    int failures = 0;
    while (true) {
      // A call that was under way when the connection broke may never end: the transceiver has no time limit.
      Future<CharSequence> value = caller.submit(() -> node.getValue("java restart"));
      try {
        check("getValue after", "before", value.get(PATIENCE_MS / 4, TimeUnit.MILLISECONDS));
        break;
      } catch (Exception failure) {
        failures++;
        if (failures > 3) {
          throw failure;
        }
      }
    }
    caller.shutdownNow();
    ok("getValue after");
    done("setValue after", () -> node.setValue("java restart", "after"));
    eventually("getValue of what is newer", "after", () -> node.getValue("java restart"));
    done("delete after", () -> node.delete("java restart"));
    eventually("getValue of a deleted key", null, () -> node.getValue("java restart"));
  }

  private static void awaitRestart() throws IOException {
    OUT.println("ready for restart");
    BufferedReader in = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
    if (in.readLine() == null) {
      throw new IllegalStateException("nobody said that the node is back");
    }
  }

  /** Calls that fail meanwhile are all right; a wrong answer, or one that never comes, is not. */
  private void restartUnderLoad() throws Exception {
    int threads = 16;
    // The transceiver's own thread can wait for the lock of one that connects, which waits for it: until the connect
    // gives up. And it can lose a connection that it made, which is why this one is never closed.
    RPCHandlerAvro node = SpecificRequestor.getClient(RPCHandlerAvro.class, Netty.connect(address, 500));
    for (int thread = 0; thread < threads; thread++) {
      String mine = "java load " + thread;
      node.setValue(mine, "value of " + mine);
      await("value of " + mine, () -> node.getValue(mine));
    }
    AtomicBoolean back = new AtomicBoolean();
    CountDownLatch calling = new CountDownLatch(threads);
    ExecutorService pool = Executors.newFixedThreadPool(threads);
    List<Future<Integer>> results = new ArrayList<>();
    for (int thread = 0; thread < threads; thread++) {
      String mine = "java load " + thread;
      results.add(pool.submit(() -> {
        int failed = 0;
        // Once it is back, this many calls in a row must be well.
        for (int well = 0; well < 200;) {
          try {
            check(mine, "value of " + mine, node.getValue(mine));
            calling.countDown();
            well = back.get() ? well + 1 : 0;
          } catch (Exception failure) {
            failed++;
            well = 0;
            Thread.sleep(5);
          }
        }
        return failed;
      }));
    }
    calling.await();
    awaitRestart();
    back.set(true);
    int failed = 0;
    for (int thread = 0; thread < threads; thread++) {
      failed += results.get(thread).get(PATIENCE_MS, TimeUnit.MILLISECONDS);
      ok("getValue in thread " + thread + " before, meanwhile and after");
    }
    pool.shutdown();
    System.err.println(failed + " calls failed meanwhile");
  }

  private void extended(Protocol protocol) throws Exception {
    GenericRequestor node = new GenericRequestor(protocol, connect());
    GenericRecord absent = (GenericRecord) node.request("getRecord", request(protocol, "getRecord", "java absent"));
    expect("getRecord of a missing key", null, absent.get("record"));

    GenericRecord set = (GenericRecord) node.request(
        "setRecord", request(protocol, "setRecord", "java record", "välue", 0L));
    expect("setRecord", 0L, set.get("ttl"));
    GenericRecord read = untilPosition(node, protocol, "java record", set);
    GenericRecord record = (GenericRecord) read.get("record");
    expect("getRecord: key", "java record", record.get("key"));
    expect("getRecord: value", "välue", record.get("value"));
    expect("getRecord: uuid", set.get("uuid"), record.get("uuid"));
    expect("getRecord: timestamp", set.get("timestamp"), record.get("timestamp"));
    expect("getRecord: timestamp of the answer", set.get("timestamp"), read.get("timestamp"));

    GenericRecord lasting = (GenericRecord) node.request(
        "setRecord", request(protocol, "setRecord", "java record", "lasting", 3_600_000L));
    expect("setRecord with a time to live", true, (Long) lasting.get("ttl") > 1_700_000_000_000L);

    GenericRecord deleted = (GenericRecord) node.request(
        "deleteRecord", request(protocol, "deleteRecord", "java record"));
    expect("deleteRecord", -1L, deleted.get("ttl"));
    expect("getRecord of a deleted key", null, untilPosition(node, protocol, "java record", deleted).get("record"));

    Schema operation = protocol.getType(protocol.getNamespace() + ".Operation");
    List<GenericRecord> operations = new ArrayList<>();
    for (int i = 0; i < 20; i++) {
      operations.add(record(operation, kind(operation, "SET"), "java scan " + (char) ('a' + i), "value " + i, 0L));
    }
    operations.add(record(operation, kind(operation, "GET"), "java absent", "", 0L));
    operations.add(record(operation, kind(operation, "DELETE"), "java absent", "", 0L));
    operations.add(record(operation, kind(operation, "SET"), "", "value", 0L));
    List<?> answers = (List<?>) node.request("batch", request(protocol, "batch", operations));
    expect("batch: the number of answers", operations.size(), answers.size());
    for (int i = 0; i < operations.size(); i++) {
      String expected = i < 20 || i == 21 ? "WriteAnswer" : i == 20 ? "ReadAnswer" : "RequestError";
      check("batch: answer " + i, expected, ((GenericRecord) answers.get(i)).getSchema().getName());
    }
    ok("batch: the answers' types");
    GenericRecord refused = (GenericRecord) answers.get(22);
    expect("batch: the error's code", "BAD_REQUEST", refused.get("code"));
    expect("batch: an empty batch", List.of(), node.request("batch", request(protocol, "batch", List.of())));

    untilPosition(node, protocol, "java scan t", (GenericRecord) answers.get(19));
    for (int i = 0; i < 20; i++) {
      String value = "value " + i;
      String key = "java scan " + (char) ('a' + i);
      await(value, () -> {
        GenericRecord found = (GenericRecord) node.request("getRecord", request(protocol, "getRecord", key));
        return found.get("record") == null ? null : ((GenericRecord) found.get("record")).get("value");
      });
    }
    List<String> scanned = new ArrayList<>();
    String cursor = "";
    int pages = 0;
    do {
      GenericRecord page = (GenericRecord) node.request(
          "scan", request(protocol, "scan", "java scan ", "java scan b", "java scan t", 7, cursor));
      for (Object stored : (List<?>) page.get("records")) {
        scanned.add(((GenericRecord) ((GenericRecord) stored).get("record")).get("value").toString());
      }
      cursor = page.get("cursor").toString();
      pages++;
    } while (!cursor.isEmpty() && pages < 10);
    List<String> wanted = new ArrayList<>();
    for (int i = 1; i < 19; i++) {
      wanted.add("value " + i);
    }
    expect("scan", wanted, scanned);
    expect("scan: pages", 3, pages);

    declared("getRecord of a blank key", "BAD_REQUEST", node, "getRecord", request(protocol, "getRecord", ""));
    declared("setRecord of a value that is too large", "TOO_LARGE", node, "setRecord",
        request(protocol, "setRecord", "java record", "x".repeat(LARGEST_VALUE + 1), 0L));
    declared("setRecord with a negative time to live", "BAD_REQUEST", node, "setRecord",
        request(protocol, "setRecord", "java record", "value", -1L));
    declared("deleteRecord of a key that is too long", "BAD_REQUEST", node, "deleteRecord",
        request(protocol, "deleteRecord", "k".repeat(LONGEST_KEY + 1)));
    declared("scan from a foreign cursor", "BAD_REQUEST", node, "scan",
        request(protocol, "scan", "", "", "", 10, "no cursor of ours"));
    refuse("getValue of a blank key", "the key is missing or blank",
        () -> node.request("getValue", request(protocol, "getValue", "")));
    expect("getValue after them", null, node.request("getValue", request(protocol, "getValue", "java absent")));
  }

  /** Reads until the answer is at least as new as a write's. */
  private static GenericRecord untilPosition(
      GenericRequestor node, Protocol protocol, String key, GenericRecord written) throws Exception {
    long end = System.nanoTime() + TimeUnit.MILLISECONDS.toNanos(PATIENCE_MS);
    GenericRecord wanted = (GenericRecord) written.get("position");
    while (true) {
      GenericRecord read = (GenericRecord) node.request("getRecord", request(protocol, "getRecord", key));
      GenericRecord position = (GenericRecord) read.get("position");
      check("the partition of " + key, wanted.get("partition"), position.get("partition"));
      if ((Long) position.get("offset") >= (Long) wanted.get("offset")) {
        return read;
      }
      if (System.nanoTime() > end) {
        throw new TimeoutException(key + " is still at " + position + ", not at " + wanted);
      }
      Thread.sleep(5);
    }
  }

  private static void declared(String call, String code, GenericRequestor node, String message, Object request)
      throws Exception {
    try {
      Object answer = node.request(message, request);
      throw new AssertionError(call + " was answered with " + shortened(answer));
    } catch (AvroRemoteException refusal) {
      GenericRecord error = (GenericRecord) refusal.getValue();
      check(call + ": the error's type", "RequestError", error.getSchema().getName());
      check(call + ": the error's code", code, error.get("code"));
      check(call + ": the error has a sentence", false, error.get("message").toString().isBlank());
    }
    ok(call);
  }

  private static GenericRecord request(Protocol protocol, String message, Object... arguments) {
    return record(protocol.getMessages().get(message).getRequest(), arguments);
  }

  private static GenericRecord record(Schema schema, Object... fields) {
    GenericRecord record = new GenericData.Record(schema);
    for (int field = 0; field < fields.length; field++) {
      record.put(field, fields[field]);
    }
    return record;
  }

  private static Object kind(Schema operation, String symbol) {
    return new GenericData.EnumSymbol(operation.getField("kind").schema(), symbol);
  }

  private Transceiver connect() throws IOException {
    Transceiver transceiver = Netty.connect(address, 5_000);
    open.add(transceiver);
    return transceiver;
  }

  private <T> T client(Class<T> protocol) throws IOException {
    return SpecificRequestor.getClient(protocol, connect());
  }

  private static ByteBuffer bytes(String text) {
    return ByteBuffer.wrap(text.getBytes(StandardCharsets.UTF_8));
  }

  private static void ok(String call) {
    OUT.println("ok " + call);
  }

  /** Strings of Avro are compared as Java's. */
  private static Object plain(Object value) {
    return value instanceof CharSequence || value instanceof GenericData.EnumSymbol ? value.toString() : value;
  }

  private static void check(String what, Object expected, Object seen) {
    if (!Objects.equals(plain(expected), plain(seen))) {
      throw new AssertionError(what + " is " + shortened(seen) + ", not " + shortened(expected));
    }
  }

  private static void expect(String call, Object expected, Object seen) {
    check(call, expected, seen);
    ok(call);
  }

  /** Calls until the answer is the expected one: a write is seen when it has come back through the log. */
  private static void await(Object expected, Callable<?> call) throws Exception {
    long end = System.nanoTime() + TimeUnit.MILLISECONDS.toNanos(PATIENCE_MS);
    Object seen = call.call();
    while (!Objects.equals(plain(expected), plain(seen))) {
      if (System.nanoTime() > end) {
        throw new TimeoutException("still " + shortened(seen) + ", not " + shortened(expected));
      }
      Thread.sleep(5);
      seen = call.call();
    }
  }

  /** A write; its answer is nothing. The newer compiler's methods are void, the older one's {@code Void}. */
  private interface Write {
    void run() throws Exception;
  }

  private static void done(String call, Write write) throws Exception {
    write.run();
    ok(call);
  }

  private static void eventually(String call, Object expected, Callable<?> read) throws Exception {
    await(expected, read);
    ok(call);
  }

  /** The call must fail with an exception whose message is the node's sentence. */
  private static void refuse(String call, String sentence, Write refused) throws Exception {
    try {
      refused.run();
    } catch (AvroRuntimeException | AvroRemoteException refusal) {
      String message = String.valueOf(refusal.getMessage());
      if (!message.equals(sentence)) {
        throw new AssertionError(call + " says " + shortened(message), refusal);
      }
      ok(call);
      return;
    }
    throw new AssertionError(call + " was not refused");
  }

  private static String shortened(Object value) {
    String text = String.valueOf(value);
    return text.length() <= 80 ? text : text.substring(0, 80) + "… (" + text.length() + " chars)";
  }

  private static String escaped(String text) {
    StringBuilder escaped = new StringBuilder();
    shortened(text).codePoints().forEach(c -> {
      if (c >= ' ' && c < 0x7f) {
        escaped.appendCodePoint(c);
      } else {
        escaped.append(String.format("<%x>", c));
      }
    });
    return "'" + escaped + "'";
  }
}
