import java.io.ByteArrayOutputStream;
import java.io.Closeable;
import java.io.DataInputStream;
import java.io.DataOutputStream;
import java.io.EOFException;
import java.io.IOException;
import java.io.InputStream;
import java.io.OutputStream;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.net.ServerSocket;
import java.net.Socket;
import java.net.SocketException;
import java.util.LinkedHashMap;
import java.util.Map;

/** Stands between a client and a server and keeps every frame that passes, as it is on the wire. */
final class Recorder implements Closeable {
  private final ServerSocket listener;
  private final int server;
  private final Map<String, byte[]> frames = new LinkedHashMap<>();
  private String call;

  Recorder(int server) throws IOException {
    this.server = server;
    listener = new ServerSocket(0, 1, InetAddress.getLoopbackAddress());
    start("listener", this::accept);
  }

  InetSocketAddress address() {
    return new InetSocketAddress(listener.getInetAddress(), listener.getLocalPort());
  }

  /** Names what comes next. */
  synchronized void call(String name) {
    call = name;
  }

  /** All frames so far: {@code <call>/request} and {@code <call>/response}, in the order in which they passed. */
  synchronized Map<String, byte[]> frames() {
    return new LinkedHashMap<>(frames);
  }

  private synchronized void keep(String direction, byte[] frame) {
    String name = call + "/" + direction;
    // A handshake that was not understood has a second round.
    for (int round = 2; frames.containsKey(name); round++) {
      name = call + "/" + direction + "-" + round;
    }
    frames.put(name, frame);
  }

  private interface Task {
    void run() throws IOException;
  }

  private static void start(String name, Task task) {
    Thread thread = new Thread(() -> {
      try {
        task.run();
      } catch (EOFException | SocketException closed) {
        // One side went away: the end of a conversation.
      } catch (IOException failure) {
        throw new IllegalStateException(failure);
      }
    }, name);
    thread.setDaemon(true);
    thread.start();
  }

  private void accept() throws IOException {
    while (true) {
      Socket client = listener.accept();
      Socket node = new Socket(listener.getInetAddress(), server);
      start("requests", () -> pump("request", client, node));
      start("responses", () -> pump("response", node, client));
    }
  }

  private void pump(String direction, Socket from, Socket to) throws IOException {
    try (from; to) {
      InputStream in = from.getInputStream();
      OutputStream out = to.getOutputStream();
      while (true) {
        byte[] frame = frame(new DataInputStream(in));
        // Before it goes on, so that an answer is never ahead of its question.
        keep(direction, frame);
        out.write(frame);
      }
    }
  }

  /** Serial, count, and each buffer after its length. */
  private static byte[] frame(DataInputStream in) throws IOException {
    ByteArrayOutputStream bytes = new ByteArrayOutputStream();
    DataOutputStream copy = new DataOutputStream(bytes);
    copy.writeInt(in.readInt());
    int buffers = in.readInt();
    copy.writeInt(buffers);
    for (int buffer = 0; buffer < buffers; buffer++) {
      byte[] content = new byte[in.readInt()];
      in.readFully(content);
      copy.writeInt(content.length);
      copy.write(content);
    }
    return bytes.toByteArray();
  }

  @Override
  public void close() throws IOException {
    listener.close();
  }
}
