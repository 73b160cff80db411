import java.io.IOException;
import java.net.InetSocketAddress;
import org.apache.avro.ipc.Responder;
import org.apache.avro.ipc.Server;
import org.apache.avro.ipc.Transceiver;
import org.apache.avro.ipc.netty.NettyServer;
import org.apache.avro.ipc.netty.NettyTransceiver;

/** What differs between the releases: where the Netty transport is. */
final class Netty {
  private Netty() {}

  static Transceiver connect(InetSocketAddress address, int patienceMs) throws IOException {
    return new NettyTransceiver(address, patienceMs);
  }

  static Server serve(Responder responder, InetSocketAddress address) throws InterruptedException {
    return new NettyServer(responder, address);
  }
}
