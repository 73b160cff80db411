import java.io.IOException;
import java.net.InetSocketAddress;
import org.apache.avro.ipc.NettyServer;
import org.apache.avro.ipc.NettyTransceiver;
import org.apache.avro.ipc.Responder;
import org.apache.avro.ipc.Server;
import org.apache.avro.ipc.Transceiver;

/** What differs between the releases: where the Netty transport is. */
final class Netty {
  private Netty() {}

  static Transceiver connect(InetSocketAddress address, long patienceMs) throws IOException {
    return new NettyTransceiver(address, patienceMs);
  }

  static Server serve(Responder responder, InetSocketAddress address) {
    return new NettyServer(responder, address);
  }
}
