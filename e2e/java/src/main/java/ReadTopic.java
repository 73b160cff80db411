import com.fasterxml.jackson.databind.ObjectMapper;
import com.fasterxml.jackson.databind.node.ObjectNode;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.List;
import java.util.Map;
import org.apache.avro.Schema;
import org.apache.avro.generic.GenericDatumReader;
import org.apache.avro.generic.GenericRecord;
import org.apache.avro.io.BinaryDecoder;
import org.apache.avro.io.DecoderFactory;
import org.apache.kafka.clients.consumer.ConsumerConfig;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;
import org.apache.kafka.common.utils.Utils;

/** Prints every record of a topic as a line of JSON: {@code ReadTopic <brokers> <topic>}. */
public class ReadTopic {
  static final Schema SCHEMA = new Schema.Parser().parse("""
      {"type": "record", "name": "KeyValueRawAvro", "namespace": "com.grayscaleconsulting.bitacora.rpc.avro",
       "fields": [{"name": "key", "type": "string"}, {"name": "value", "type": "string"},
                  {"name": "timestamp", "type": "long"}, {"name": "source", "type": "int"},
                  {"name": "ttl", "type": "long"}, {"name": "uuid", "type": "string"}]}""");

  public static void main(String[] args) throws Exception {
    String brokers = args[0];
    String topic = args[1];
    PrintStream out = new PrintStream(System.out, true, StandardCharsets.UTF_8);
    ObjectMapper json = new ObjectMapper();
    GenericDatumReader<GenericRecord> reader = new GenericDatumReader<>(SCHEMA);
    Map<String, Object> config = Map.of(
        ConsumerConfig.BOOTSTRAP_SERVERS_CONFIG, brokers,
        ConsumerConfig.KEY_DESERIALIZER_CLASS_CONFIG, ByteArrayDeserializer.class,
        ConsumerConfig.VALUE_DESERIALIZER_CLASS_CONFIG, ByteArrayDeserializer.class,
        ConsumerConfig.ENABLE_AUTO_COMMIT_CONFIG, "false",
        ConsumerConfig.AUTO_OFFSET_RESET_CONFIG, "earliest");
    try (KafkaConsumer<byte[], byte[]> consumer = new KafkaConsumer<>(config)) {
      List<TopicPartition> partitions = consumer.partitionsFor(topic).stream()
          .map(info -> new TopicPartition(topic, info.partition())).toList();
      consumer.assign(partitions);
      consumer.seekToBeginning(partitions);
      Map<TopicPartition, Long> ends = consumer.endOffsets(partitions);
      while (ends.entrySet().stream().anyMatch(end -> consumer.position(end.getKey()) < end.getValue())) {
        for (ConsumerRecord<byte[], byte[]> record : consumer.poll(Duration.ofMillis(200))) {
          BinaryDecoder decoder = DecoderFactory.get().binaryDecoder(record.value(), null);
          GenericRecord value = reader.read(null, decoder);
          if (!decoder.isEnd()) {
            throw new IllegalStateException("bytes are left after the record at " + record.offset());
          }
          ObjectNode line = json.createObjectNode()
              .put("partition", record.partition())
              .put("offset", record.offset())
              .put("kafkaKey", new String(record.key(), StandardCharsets.UTF_8))
              .put("javaPartition", Utils.toPositive(Utils.murmur2(record.key())) % partitions.size());
          for (Schema.Field field : SCHEMA.getFields()) {
            Object content = value.get(field.pos());
            switch (field.schema().getType()) {
              case LONG -> line.put(field.name(), (Long) content);
              case INT -> line.put(field.name(), (Integer) content);
              default -> line.put(field.name(), content.toString());
            }
          }
          out.println(json.writeValueAsString(line));
        }
      }
    }
  }
}
