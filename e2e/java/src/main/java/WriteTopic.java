import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import java.io.BufferedReader;
import java.io.ByteArrayOutputStream;
import java.io.InputStreamReader;
import java.nio.charset.StandardCharsets;
import java.util.Map;
import org.apache.avro.Schema;
import org.apache.avro.generic.GenericData;
import org.apache.avro.generic.GenericDatumWriter;
import org.apache.avro.generic.GenericRecord;
import org.apache.avro.io.BinaryEncoder;
import org.apache.avro.io.EncoderFactory;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerConfig;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.clients.producer.RecordMetadata;
import org.apache.kafka.common.serialization.ByteArraySerializer;

/**
 * Writes each line of JSON on its input as a record, and prints its position: {@code WriteTopic <brokers> <topic>}.
 */
public class WriteTopic {
  public static void main(String[] args) throws Exception {
    ObjectMapper json = new ObjectMapper();
    Schema schema = ReadTopic.SCHEMA;
    GenericDatumWriter<GenericRecord> writer = new GenericDatumWriter<>(schema);
    Map<String, Object> config = Map.of(
        ProducerConfig.BOOTSTRAP_SERVERS_CONFIG, args[0],
        ProducerConfig.KEY_SERIALIZER_CLASS_CONFIG, ByteArraySerializer.class,
        ProducerConfig.VALUE_SERIALIZER_CLASS_CONFIG, ByteArraySerializer.class);
    try (KafkaProducer<byte[], byte[]> producer = new KafkaProducer<>(config);
        BufferedReader in = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8))) {
      for (String line = in.readLine(); line != null; line = in.readLine()) {
        JsonNode fields = json.readTree(line);
        GenericRecord record = new GenericData.Record(schema);
        for (Schema.Field field : schema.getFields()) {
          JsonNode content = fields.required(field.name());
          switch (field.schema().getType()) {
            case LONG -> record.put(field.pos(), content.longValue());
            case INT -> record.put(field.pos(), content.intValue());
            default -> record.put(field.pos(), content.textValue());
          }
        }
        ByteArrayOutputStream bytes = new ByteArrayOutputStream();
        BinaryEncoder encoder = EncoderFactory.get().binaryEncoder(bytes, null);
        writer.write(record, encoder);
        encoder.flush();
        byte[] key = fields.required("key").textValue().getBytes(StandardCharsets.UTF_8);
        // Without a partition: Kafka's own partitioner chooses.
        RecordMetadata position = producer.send(new ProducerRecord<>(args[1], key, bytes.toByteArray())).get();
        System.out.println(position.partition() + ":" + position.offset());
      }
    }
  }
}
