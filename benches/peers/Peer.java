import io.confluent.parallelconsumer.ParallelConsumerOptions;
import io.confluent.parallelconsumer.ParallelConsumerOptions.ProcessingOrder;
import io.confluent.parallelconsumer.vertx.VertxParallelEoSStreamProcessor;
import io.vertx.core.Vertx;
import io.vertx.core.buffer.Buffer;
import io.vertx.ext.web.client.WebClient;
import io.vertx.ext.web.client.WebClientOptions;
import io.vertx.ext.web.client.predicate.ResponsePredicate;
import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.util.Collection;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.CountDownLatch;
import org.apache.kafka.clients.admin.Admin;
import org.apache.kafka.clients.admin.OffsetSpec;
import org.apache.kafka.clients.consumer.ConsumerConfig;
import org.apache.kafka.clients.consumer.ConsumerRebalanceListener;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.consumer.OffsetAndMetadata;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;

/**
 * Confluent Parallel Consumer as a peer of eventd: it posts the value of each record to an address, in order for each
 * key. It ends with its standard input.
 *
 * <pre>
 *   Peer deliver BROKERS TOPIC GROUP HOST PORT CONCURRENCY BUFFER    BUFFER 0 is the peer's default
 *   Peer lag     BROKERS TOPIC GROUP                                 answers each line with the largest distance of a
 *                                                                    partition's commit from the end of the log
 * </pre>
 */
public final class Peer {
    public static void main(String[] arguments) throws Exception {
        switch (arguments[0]) {
            case "deliver" -> deliver(arguments);
            case "lag" -> lag(arguments);
            default -> throw new IllegalArgumentException("deliver or lag, and not " + arguments[0]);
        }
    }

    private static void deliver(String[] arguments) throws Exception {
        endWithStandardInput();
        String brokers = arguments[1], topic = arguments[2], group = arguments[3], host = arguments[4];
        int port = Integer.parseInt(arguments[5]);
        int concurrency = Integer.parseInt(arguments[6]), buffer = Integer.parseInt(arguments[7]);

        Map<String, Object> settings = new HashMap<>();
        settings.put(ConsumerConfig.BOOTSTRAP_SERVERS_CONFIG, brokers);
        settings.put(ConsumerConfig.GROUP_ID_CONFIG, group);
        settings.put(ConsumerConfig.AUTO_OFFSET_RESET_CONFIG, "earliest");
        // The library commits by itself, and demands this.
        settings.put(ConsumerConfig.ENABLE_AUTO_COMMIT_CONFIG, false);
        var consumer = new KafkaConsumer<>(settings, new ByteArrayDeserializer(), new ByteArrayDeserializer());

        var options = ParallelConsumerOptions.<byte[], byte[]>builder()
                .consumer(consumer)
                .ordering(ProcessingOrder.KEY)
                .maxConcurrency(concurrency);
        if (buffer > 0) {
            options.messageBufferSize(buffer);
        }
        Vertx vertx = Vertx.vertx();
        // Vert.x alone would open five connections.
        var web = WebClient.create(vertx, new WebClientOptions().setMaxPoolSize(concurrency));
        var processor = new VertxParallelEoSStreamProcessor<byte[], byte[]>(vertx, web, options.build());
        var assigned = new CountDownLatch(1);
        processor.subscribe(List.of(topic), new ConsumerRebalanceListener() {
            @Override
            public void onPartitionsAssigned(Collection<TopicPartition> partitions) {
                assigned.countDown();
            }

            @Override
            public void onPartitionsRevoked(Collection<TopicPartition> partitions) {}
        });
        // A status other than 2xx counts as a failure, and the library tries the record again.
        processor.vertxFuture(record -> web.post(port, host, "/hook")
                .putHeader("content-type", "text/plain; charset=utf-8")
                .expect(ResponsePredicate.SC_SUCCESS)
                .sendBuffer(Buffer.buffer(record.value())));
        // The load begins when it has its partitions, so the start of the JVM does not count.
        assigned.await();
        System.out.println("delivers");
        Thread.currentThread().join();
    }

    /** Ends the process, also before it has partitions. What is in flight does not matter any more. */
    private static void endWithStandardInput() {
        new Thread(() -> {
            try {
                while (System.in.read() >= 0) {}
            } catch (IOException error) {
                System.err.println("standard input: " + error);
            }
            Runtime.getRuntime().halt(0);
        }).start();
    }

    private static void lag(String[] arguments) throws Exception {
        String topic = arguments[2], group = arguments[3];
        try (Admin admin = Admin.create(Map.of("bootstrap.servers", arguments[1]))) {
            System.out.println("looks");
            var questions = new BufferedReader(new InputStreamReader(System.in));
            while (questions.readLine() != null) {
                System.out.println(largestLag(admin, topic, group));
            }
        }
    }

    private static long largestLag(Admin admin, String topic, String group) throws Exception {
        Map<TopicPartition, OffsetSpec> ends = new HashMap<>();
        var described = admin.describeTopics(List.of(topic)).allTopicNames().get().get(topic);
        described.partitions().forEach(one -> ends.put(new TopicPartition(topic, one.partition()), OffsetSpec.latest()));
        Map<TopicPartition, OffsetAndMetadata> committed =
                admin.listConsumerGroupOffsets(group).partitionsToOffsetAndMetadata().get();
        long largest = 0;
        for (var end : admin.listOffsets(ends).all().get().entrySet()) {
            OffsetAndMetadata commit = committed.get(end.getKey());
            largest = Math.max(largest, end.getValue().offset() - (commit == null ? 0 : commit.offset()));
        }
        return largest;
    }
}
