package tidelog;

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import com.fasterxml.jackson.databind.node.ObjectNode;
import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.Properties;
import java.util.Set;
import java.util.TreeMap;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.Future;
import java.util.concurrent.TimeUnit;
import org.apache.kafka.clients.admin.Admin;
import org.apache.kafka.clients.admin.AlterConfigOp;
import org.apache.kafka.clients.admin.ConfigEntry;
import org.apache.kafka.clients.admin.GroupListing;
import org.apache.kafka.clients.admin.NewPartitions;
import org.apache.kafka.clients.admin.NewTopic;
import org.apache.kafka.clients.admin.RecordsToDelete;
import org.apache.kafka.clients.admin.TopicDescription;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.consumer.OffsetAndMetadata;
import org.apache.kafka.clients.consumer.OffsetAndTimestamp;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.clients.producer.RecordMetadata;
import org.apache.kafka.common.KafkaFuture;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.config.ConfigResource;
import org.apache.kafka.common.errors.UnknownTopicOrPartitionException;
import org.apache.kafka.common.header.Header;
import org.apache.kafka.common.header.internals.RecordHeader;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;
import org.apache.kafka.common.serialization.ByteArraySerializer;
import org.apache.kafka.common.utils.AppInfoParser;

/**
 * Kafka's Java clients fitted to the line protocol of the interop tests (../../../../../README.md).
 *
 * <p>Always true: one line in, one line out, in order; a client's exception travels as text and never ends the process.
 */
public final class Driver {
    static final ObjectMapper JSON = new ObjectMapper();
    private static final Duration DEADLINE = Duration.ofSeconds(30);

    private final List<Member> members = new ArrayList<>();

    private Driver() {}

    public static void main(String[] arguments) throws IOException {
        PrintStream output = System.out;
        System.setOut(System.err); // whatever a library prints is no answer
        BufferedReader input = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        Driver driver = new Driver();
        for (String line = input.readLine(); line != null; line = input.readLine()) {
            ObjectNode answer = JSON.createObjectNode();
            try {
                answer.set("result", JSON.valueToTree(driver.answer(JSON.readTree(line))));
            } catch (Exception error) {
                Throwable cause = error instanceof ExecutionException ? error.getCause() : error;
                answer.put("error", cause.toString());
            }
            output.write(JSON.writeValueAsBytes(answer));
            output.write('\n');
            output.flush();
        }
        System.exit(0); // members that a failed test left behind have threads
    }

    private Object answer(JsonNode request) throws Exception {
        return switch (request.get("call").asText()) {
            case "version" -> AppInfoParser.getVersion();
            case "produce" -> produce(request);
            case "consume" -> consume(request);
            case "offset_for_timestamp" -> offsetForTimestamp(request);
            case "create_topic" -> createTopic(request);
            case "delete_topic" -> deleteTopic(request);
            case "partitions" -> partitions(request);
            case "committed" -> committed(request);
            case "create_partitions" -> createPartitions(request);
            case "config" -> config(request);
            case "set_config" -> setConfig(request);
            case "delete_records" -> deleteRecords(request);
            case "groups" -> groups(request);
            case "delete_group" -> deleteGroup(request);
            case "join" -> join(request);
            case "progress" -> member(request).progress();
            case "leave" -> member(request).leave();
            default -> throw new IllegalArgumentException("unknown call " + request.get("call"));
        };
    }

    private Object produce(JsonNode request) throws Exception {
        Properties settings = settings(request);
        settings.put("key.serializer", ByteArraySerializer.class.getName());
        settings.put("value.serializer", ByteArraySerializer.class.getName());
        settings.put("compression.type", request.get("compression").asText());
        settings.put("acks", request.get("acks").asText());
        settings.put("enable.idempotence", request.get("idempotent").asText());
        settings.put("delivery.timeout.ms", (int) DEADLINE.toMillis());
        settings.put("request.timeout.ms", 5000);
        settings.put("linger.ms", 5);
        int pauseMs = request.path("pause_ms").asInt(0);
        List<Future<RecordMetadata>> sent = new ArrayList<>();
        try (KafkaProducer<byte[], byte[]> producer = new KafkaProducer<>(settings)) {
            for (JsonNode record : request.get("records")) {
                List<Header> headers = new ArrayList<>();
                for (JsonNode header : record.get("headers")) {
                    headers.add(new RecordHeader(header.get("name").asText(), bytes(header.get("value"))));
                }
                JsonNode timestamp = record.get("timestamp_ms");
                sent.add(producer.send(new ProducerRecord<>(
                        request.get("topic").asText(),
                        request.get("partition").asInt(),
                        timestamp.isNull() ? null : timestamp.asLong(),
                        bytes(record.get("key")),
                        bytes(record.get("value")),
                        headers)));
                if (pauseMs > 0) {
                    Thread.sleep(pauseMs);
                }
            }
            producer.flush();
            for (Future<RecordMetadata> future : sent) {
                future.get();
            }
        }
        return null;
    }

    private Object consume(JsonNode request) {
        try (KafkaConsumer<byte[], byte[]> consumer = consumer(settings(request))) {
            TopicPartition place = place(request);
            consumer.assign(List.of(place));
            consumer.seek(place, request.get("offset").asLong());
            int count = request.get("count").asInt();
            List<Map<String, Object>> found = new ArrayList<>();
            long deadline = System.nanoTime() + DEADLINE.toNanos();
            while (found.size() < count && System.nanoTime() < deadline) {
                for (ConsumerRecord<byte[], byte[]> record : consumer.poll(Duration.ofMillis(500))) {
                    if (found.size() < count) {
                        found.add(consumed(record));
                    }
                }
            }
            return found;
        }
    }

    private Object offsetForTimestamp(JsonNode request) {
        try (KafkaConsumer<byte[], byte[]> consumer = consumer(settings(request))) {
            TopicPartition place = place(request);
            OffsetAndTimestamp found = consumer.offsetsForTimes(
                            Map.of(place, request.get("timestamp_ms").asLong()))
                    .get(place);
            return found == null ? null : found.offset();
        }
    }

    private Object createTopic(JsonNode request) throws Exception {
        Map<String, String> configs = new HashMap<>();
        request.get("configs").properties().forEach(entry -> configs.put(entry.getKey(), entry.getValue().asText()));
        NewTopic topic = new NewTopic(
                request.get("topic").asText(), Optional.of(request.get("partitions").asInt()), Optional.empty());
        try (Admin admin = Admin.create(settings(request))) {
            admin.createTopics(List.of(topic.configs(configs))).all().get(DEADLINE.toSeconds(), TimeUnit.SECONDS);
        }
        return null;
    }

    private Object deleteTopic(JsonNode request) throws Exception {
        try (Admin admin = Admin.create(settings(request))) {
            admin.deleteTopics(List.of(request.get("topic").asText())).all().get(DEADLINE.toSeconds(), TimeUnit.SECONDS);
        }
        return null;
    }

    private Object partitions(JsonNode request) throws Exception {
        String topic = request.get("topic").asText();
        try (Admin admin = Admin.create(settings(request))) {
            TopicDescription found = admin.describeTopics(List.of(topic))
                    .topicNameValues()
                    .get(topic)
                    .get(DEADLINE.toSeconds(), TimeUnit.SECONDS);
            return found.partitions().stream().map(info -> info.partition()).toList();
        } catch (ExecutionException error) {
            if (error.getCause() instanceof UnknownTopicOrPartitionException) {
                return null;
            }
            throw error;
        }
    }

    private Object committed(JsonNode request) throws Exception {
        String group = request.get("group").asText();
        Map<Integer, Long> found = new TreeMap<>();
        try (Admin admin = Admin.create(settings(request))) {
            Map<TopicPartition, OffsetAndMetadata> offsets = admin.listConsumerGroupOffsets(group)
                    .partitionsToOffsetAndMetadata()
                    .get(DEADLINE.toSeconds(), TimeUnit.SECONDS);
            offsets.forEach((place, offset) -> {
                if (place.topic().equals(request.get("topic").asText()) && offset != null) {
                    found.put(place.partition(), offset.offset());
                }
            });
        }
        return found;
    }

    private Object createPartitions(JsonNode request) throws Exception {
        NewPartitions wanted = NewPartitions.increaseTo(request.get("partitions").asInt());
        try (Admin admin = Admin.create(settings(request))) {
            return wait(admin.createPartitions(Map.of(request.get("topic").asText(), wanted)).all());
        }
    }

    private Object config(JsonNode request) throws Exception {
        ConfigResource topic = topic(request);
        try (Admin admin = Admin.create(settings(request))) {
            ConfigEntry found = wait(admin.describeConfigs(List.of(topic)).all())
                    .get(topic)
                    .get(request.get("name").asText());
            return found == null ? null : found.value();
        }
    }

    private Object setConfig(JsonNode request) throws Exception {
        ConfigEntry entry = new ConfigEntry(request.get("name").asText(), request.get("value").asText());
        AlterConfigOp change = new AlterConfigOp(entry, AlterConfigOp.OpType.SET);
        try (Admin admin = Admin.create(settings(request))) {
            return wait(admin.incrementalAlterConfigs(Map.of(topic(request), List.of(change))).all());
        }
    }

    private Object deleteRecords(JsonNode request) throws Exception {
        RecordsToDelete before = RecordsToDelete.beforeOffset(request.get("offset").asLong());
        try (Admin admin = Admin.create(settings(request))) {
            return wait(admin.deleteRecords(Map.of(place(request), before)).all());
        }
    }

    private Object groups(JsonNode request) throws Exception {
        try (Admin admin = Admin.create(settings(request))) {
            return wait(admin.listGroups().all()).stream().map(GroupListing::groupId).toList();
        }
    }

    private Object deleteGroup(JsonNode request) throws Exception {
        try (Admin admin = Admin.create(settings(request))) {
            return wait(admin.deleteConsumerGroups(List.of(request.get("group").asText())).all());
        }
    }

    private static <T> T wait(KafkaFuture<T> future) throws Exception {
        return future.get(DEADLINE.toSeconds(), TimeUnit.SECONDS);
    }

    private static ConfigResource topic(JsonNode request) {
        return new ConfigResource(ConfigResource.Type.TOPIC, request.get("topic").asText());
    }

    private Object join(JsonNode request) {
        members.add(new Member(settings(request), request));
        return members.size();
    }

    private Member member(JsonNode request) {
        return members.get(request.get("member").asInt() - 1);
    }

    private static Properties settings(JsonNode request) {
        Properties settings = new Properties();
        settings.put("bootstrap.servers", request.get("bootstrap").asText());
        return settings;
    }

    static KafkaConsumer<byte[], byte[]> consumer(Properties settings) {
        settings.put("key.deserializer", ByteArrayDeserializer.class.getName());
        settings.put("value.deserializer", ByteArrayDeserializer.class.getName());
        settings.put("enable.auto.commit", "false");
        settings.putIfAbsent("auto.offset.reset", "none");
        return new KafkaConsumer<>(settings);
    }

    static Map<String, Object> consumed(ConsumerRecord<byte[], byte[]> record) {
        List<Map<String, Object>> headers = new ArrayList<>();
        for (Header header : record.headers()) {
            headers.add(Map.of("name", header.key(), "value", header.value()));
        }
        Map<String, Object> found = new HashMap<>();
        found.put("key", record.key()); // Jackson writes byte[] as base64
        found.put("value", record.value());
        found.put("headers", headers);
        found.put("timestamp_ms", record.timestamp());
        found.put("partition", record.partition());
        found.put("offset", record.offset());
        return found;
    }

    private static TopicPartition place(JsonNode request) {
        return new TopicPartition(request.get("topic").asText(), request.get("partition").asInt());
    }

    private static byte[] bytes(JsonNode base64) throws IOException {
        return base64.isNull() ? null : base64.binaryValue();
    }

    /** The partitions of a topic among some. */
    static Set<Integer> indexes(Iterable<TopicPartition> places) {
        Set<Integer> found = new java.util.TreeSet<>();
        places.forEach(place -> found.add(place.partition()));
        return found;
    }
}
