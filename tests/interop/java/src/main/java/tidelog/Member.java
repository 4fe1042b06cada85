package tidelog;

import com.fasterxml.jackson.databind.JsonNode;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Collection;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import java.util.Set;
import java.util.TreeSet;
import org.apache.kafka.clients.consumer.ConsumerRebalanceListener;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.CooperativeStickyAssignor;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.consumer.OffsetAndMetadata;
import org.apache.kafka.clients.consumer.RangeAssignor;
import org.apache.kafka.clients.consumer.RoundRobinAssignor;
import org.apache.kafka.clients.consumer.StickyAssignor;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.errors.RebalanceInProgressException;

/** A consumer in a group, in a thread of its own, that commits what it has read after each poll. */
final class Member implements Runnable, ConsumerRebalanceListener {
    private static final Map<String, Class<?>> ASSIGNORS = Map.of(
            "range", RangeAssignor.class,
            "roundrobin", RoundRobinAssignor.class,
            "sticky", StickyAssignor.class,
            "cooperative-sticky", CooperativeStickyAssignor.class);

    private final KafkaConsumer<byte[], byte[]> consumer;
    private final int limit;
    private final Thread thread;
    private final Set<Integer> assigned = new TreeSet<>();
    private List<Map<String, Object>> records = new ArrayList<>();
    private int read;
    private String failure = "";
    private volatile boolean stopping;

    Member(Properties settings, JsonNode request) {
        settings.put("group.id", request.get("group").asText());
        settings.put("auto.offset.reset", "earliest");
        String assignor = request.get("assignor").asText();
        if (assignor.equals("consumer")) { // KIP-848: the broker assigns
            settings.put("group.protocol", "consumer");
        } else {
            settings.put("partition.assignment.strategy", ASSIGNORS.get(assignor).getName());
            settings.put("heartbeat.interval.ms", 300);
            settings.put("session.timeout.ms", 6000);
        }
        if (!request.get("instance_id").asText().isEmpty()) {
            settings.put("group.instance.id", request.get("instance_id").asText());
        }
        limit = request.get("limit").asInt();
        consumer = Driver.consumer(settings);
        consumer.subscribe(List.of(request.get("topic").asText()), this);
        thread = new Thread(this, "member");
        thread.setDaemon(true);
        thread.start();
    }

    @Override
    public void run() {
        try (consumer) {
            while (!stopping) {
                Map<TopicPartition, OffsetAndMetadata> offsets = take(consumer.poll(Duration.ofMillis(100)));
                if (offsets == null) {
                    consumer.pause(consumer.assignment()); // the limit is reached: only the group is kept up
                } else if (!offsets.isEmpty()) {
                    try {
                        consumer.commitSync(offsets);
                    } catch (RebalanceInProgressException error) {
                        continue; // what the next owner reads again is what at-least-once allows
                    }
                }
            }
        } catch (RuntimeException error) {
            synchronized (this) {
                failure = error.toString();
            }
        }
    }

    /** Keep records up to the limit, and return what to commit; null when there was no room for more. */
    private synchronized Map<TopicPartition, OffsetAndMetadata> take(Iterable<ConsumerRecord<byte[], byte[]>> polled) {
        if (limit > 0 && read >= limit) {
            return null;
        }
        Map<TopicPartition, OffsetAndMetadata> offsets = new HashMap<>();
        for (ConsumerRecord<byte[], byte[]> record : polled) {
            if (limit > 0 && read >= limit) {
                break;
            }
            records.add(Driver.consumed(record));
            read++;
            offsets.put(
                    new TopicPartition(record.topic(), record.partition()), new OffsetAndMetadata(record.offset() + 1));
        }
        return offsets;
    }

    synchronized Object progress() {
        List<Map<String, Object>> taken = records;
        records = new ArrayList<>();
        return Map.of("assigned", Set.copyOf(assigned), "records", taken, "failure", failure);
    }

    Object leave() throws InterruptedException {
        stopping = true;
        thread.join();
        return null;
    }

    @Override
    public synchronized void onPartitionsAssigned(Collection<TopicPartition> added) {
        assigned.addAll(Driver.indexes(added));
    }

    @Override
    public synchronized void onPartitionsRevoked(Collection<TopicPartition> revoked) {
        assigned.removeAll(Driver.indexes(revoked));
    }
}
