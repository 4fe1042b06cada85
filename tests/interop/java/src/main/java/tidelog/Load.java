package tidelog;

import java.io.IOException;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.List;
import java.util.Map;
import java.util.zip.CRC32C;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;
import org.apache.kafka.common.serialization.ByteArraySerializer;

/**
 * A producer and a consumer with default settings that go on whatever happens, and tell what came of each record
 * (../../../../../../../faults/load.py has the protocol).
 *
 * <p>Use: Load BOOTSTRAP TOPIC PARTITIONS NAME RECORDS_PER_SECOND
 */
public final class Load {
    private static final PrintStream OUTPUT = System.out;
    private static volatile boolean stopping = false;

    private Load() {}

    public static void main(String[] arguments) throws Exception {
        System.setOut(System.err); // whatever a library prints is no line of ours
        String bootstrap = arguments[0];
        String topic = arguments[1];
        int partitions = Integer.parseInt(arguments[2]);
        String name = arguments[3];
        long pauseMs = 1000 / Integer.parseInt(arguments[4]);
        Thread ending = new Thread(Load::awaitEnd);
        ending.setDaemon(true);
        ending.start();
        Thread reading = new Thread(() -> read(bootstrap, topic, name));
        reading.start();
        Map<String, Object> settings = Map.of("bootstrap.servers", bootstrap);
        try (var producer = new KafkaProducer<>(settings, new ByteArraySerializer(), new ByteArraySerializer())) {
            for (int number = 0; !stopping; number++) {
                int partition = number % partitions;
                int sent = number;
                byte[] key = (name + "/" + number).getBytes(StandardCharsets.UTF_8);
                say("s " + partition + " " + number);
                producer.send(new ProducerRecord<>(topic, partition, key, value(key, number)), (metadata, error) -> {
                    if (error != null) {
                        say("e " + sent + ": " + error);
                    } else {
                        say("a " + metadata.partition() + " " + sent + " " + metadata.offset());
                    }
                });
                Thread.sleep(pauseMs);
            }
            producer.flush();
        } catch (Exception error) {
            say("e producer: " + error);
        }
        reading.join();
        say("end");
        System.exit(0);
    }

    private static void read(String bootstrap, String topic, String group) {
        Map<String, Object> settings =
                Map.of("bootstrap.servers", bootstrap, "group.id", group, "auto.offset.reset", "earliest");
        try (var consumer = new KafkaConsumer<>(settings, new ByteArrayDeserializer(), new ByteArrayDeserializer())) {
            consumer.subscribe(List.of(topic));
            while (!stopping) {
                for (ConsumerRecord<byte[], byte[]> record : consumer.poll(Duration.ofMillis(200))) {
                    CRC32C digest = new CRC32C();
                    digest.update(record.key());
                    digest.update(record.value());
                    say("r " + record.partition() + " " + record.offset() + " "
                            + new String(record.key(), StandardCharsets.UTF_8) + " " + digest.getValue());
                }
            }
        } catch (Exception error) {
            say("e consumer: " + error);
        }
    }

    private static byte[] value(byte[] key, int number) {
        return (new String(key, StandardCharsets.UTF_8) + ";")
                .repeat(number % 40 + 1)
                .getBytes(StandardCharsets.UTF_8);
    }

    private static synchronized void say(String line) {
        OUTPUT.println(line);
        OUTPUT.flush();
    }

    private static void awaitEnd() {
        try {
            while (System.in.read() >= 0) {}
        } catch (IOException error) {
            // it is over as well
        }
        stopping = true;
    }
}
