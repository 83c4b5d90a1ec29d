// Writes and reads a topic with Kafka's own client, as other programs do. A scene prints one line for each record that the
// brokers acknowledged or returned, so that a test knows what eventd has to find:
//
//   compose/broker java Foreign.java BROKERS SCENE TOPIC
//
// A line has the fields "aborted" or "committed", topic, partition, offset, timestamp, key, value and headers, separated
// by tabs. Bytes are in base64, and null is -. A line "=> …" reports the progress of the scene. A scene that has to wait
// for the test waits for a line of input, and ends if its input has ended.

import java.io.BufferedOutputStream;
import java.io.BufferedReader;
import java.io.FileDescriptor;
import java.io.FileOutputStream;
import java.io.IOException;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Base64;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.Random;
import java.util.concurrent.Future;
import java.util.function.IntFunction;
import java.util.stream.IntStream;
import org.apache.kafka.clients.admin.Admin;
import org.apache.kafka.clients.admin.NewTopic;
import org.apache.kafka.clients.admin.RecordsToDelete;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.clients.producer.RecordMetadata;
import org.apache.kafka.clients.producer.internals.BuiltInPartitioner;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.header.Header;
import org.apache.kafka.common.header.internals.RecordHeader;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;
import org.apache.kafka.common.serialization.ByteArraySerializer;

public class Foreign {
    static final PrintStream OUT = new PrintStream(new BufferedOutputStream(new FileOutputStream(FileDescriptor.out)));
    static final BufferedReader IN = new BufferedReader(new InputStreamReader(System.in));
    static final long NOW = System.currentTimeMillis();
    // No test waits longer. This also ends a JVM whose test has ended.
    static final Duration PATIENCE = Duration.ofSeconds(60);

    static String brokers;
    static String topic;

    public static void main(String[] args) throws Exception {
        brokers = args[0];
        topic = args[2];
        switch (args[1]) {
            case "oddities" -> oddities();
            case "transactions" -> transactions(Long.parseLong(args[3]));
            case "compacted" -> compacted();
            case "reader" -> reader();
            default -> throw new IllegalArgumentException(args[1]);
        }
        say("done");
    }

    static void say(String what) {
        OUT.println("=> " + what);
        OUT.flush();
    }

    static void line(String kind, ConsumerRecord<byte[], byte[]> record) {
        tell(kind, record.topic(), record.partition(), record.offset(), record.timestamp(), record.key(),
                record.value(), record.headers());
    }

    static void tell(String kind, String topic, int partition, long offset, long timestamp, byte[] key, byte[] value,
            Iterable<Header> headers) {
        StringBuilder line = new StringBuilder(kind).append('\t').append(topic).append('\t').append(partition)
                .append('\t').append(offset).append('\t').append(timestamp)
                .append('\t').append(shown(key)).append('\t').append(shown(value));
        for (Header header : headers) {
            line.append('\t').append(shown(text(header.key()))).append(':').append(shown(header.value()));
        }
        OUT.println(line);
    }

    static String shown(byte[] bytes) {
        return bytes == null ? "-" : Base64.getEncoder().encodeToString(bytes);
    }

    static byte[] text(String text) {
        return text.getBytes(StandardCharsets.UTF_8);
    }

    static byte[] bytes(int... values) {
        byte[] bytes = new byte[values.length];
        IntStream.range(0, values.length).forEach(i -> bytes[i] = (byte) values[i]);
        return bytes;
    }

    // --- Writing -----------------------------------------------------------------------------------------------------

    static void makeTopic(String name, int partitions, Map<String, String> settings) throws Exception {
        try (Admin admin = Admin.create(Map.of("bootstrap.servers", brokers))) {
            NewTopic topic = new NewTopic(name, Optional.of(partitions), Optional.empty());
            admin.createTopics(List.of(topic.configs(settings))).all().get();
        }
    }

    /** A producer, and the records that it has sent but not reported yet. */
    static class Writer implements AutoCloseable {
        record Sent(ProducerRecord<byte[], byte[]> record, Future<RecordMetadata> metadata) {}

        final KafkaProducer<byte[], byte[]> producer;
        final String topic;
        final List<Sent> sent = new ArrayList<>();
        // Records of an open transaction in flushed batches. They are reported when it ends.
        int open = 0;

        Writer(String topic, Map<String, Object> settings) {
            Map<String, Object> all = new HashMap<>(Map.of(
                    "bootstrap.servers", brokers,
                    "acks", "all",
                    // A flush ends a batch.
                    "linger.ms", 60_000, "delivery.timeout.ms", 90_000,
                    "batch.size", 8 << 20, "max.request.size", 8 << 20, "buffer.memory", 64 << 20,
                    "max.block.ms", PATIENCE.toMillis(),
                    // A transaction that begins while the markers of the previous one are written is retried.
                    "retry.backoff.ms", 5));
            all.putAll(settings);
            producer = new KafkaProducer<>(all, new ByteArraySerializer(), new ByteArraySerializer());
            this.topic = topic;
        }

        void send(int partition, long timestamp, byte[] key, byte[] value, Header... headers) {
            var record = new ProducerRecord<>(topic, partition, timestamp, key, value, List.of(headers));
            sent.add(new Sent(record, producer.send(record)));
        }

        void end(boolean commits) throws Exception {
            // An abort drops records that were never sent, and then nothing would be aborted in the log.
            producer.flush();
            if (commits) {
                producer.commitTransaction();
            } else {
                producer.abortTransaction();
            }
            open = 0;
            report(commits ? "committed" : "aborted");
        }

        void report(String kind) throws Exception {
            producer.flush();
            for (Sent one : sent) {
                RecordMetadata at = one.metadata.get();
                var record = one.record;
                tell(kind, at.topic(), at.partition(), at.offset(), at.timestamp(), record.key(), record.value(),
                        record.headers());
            }
            sent.clear();
        }

        @Override
        public void close() {
            producer.close(Duration.ofSeconds(5));
        }
    }

    /** One partition for each codec, with batches of odd and of large records, with broker timestamps, and with holes. */
    static void oddities() throws Exception {
        List<String> codecs = List.of("none", "gzip", "snappy", "lz4", "zstd");
        Map<String, String> settings = Map.of("retention.ms", "-1", "max.message.bytes", String.valueOf(8 << 20));
        makeTopic(topic, codecs.size() + 1, settings);
        for (int partition = 0; partition < codecs.size(); partition++) {
            try (Writer writer = new Writer(topic, Map.of("compression.type", codecs.get(partition)))) {
                oddRecords(writer, partition);
                writer.report("committed");
                largeBatch(writer, partition);
                writer.report("committed");
                // A single record after the large batch.
                writer.send(partition, NOW, text("user-1"), text("last"));
                writer.report("committed");
            }
        }
        say("a partition a codec: " + String.join(" ", codecs));

        int deletedFrom = codecs.size();
        try (Writer writer = new Writer(topic, Map.of("compression.type", "zstd"));
                Admin admin = Admin.create(Map.of("bootstrap.servers", brokers))) {
            for (int batch = 0; batch < 3; batch++) {
                for (int i = 0; i < 10; i++) {
                    writer.send(deletedFrom, NOW, text("user-" + i % 3), text(batch + "." + i));
                }
                writer.producer.flush();
            }
            // The first remaining record is in the middle of a batch.
            TopicPartition partition = new TopicPartition(topic, deletedFrom);
            admin.deleteRecords(Map.of(partition, RecordsToDelete.beforeOffset(17))).all().get();
            writer.sent.subList(0, 17).clear();
            writer.report("committed");
        }

        String ofBroker = topic + ".append-time";
        makeTopic(ofBroker, 2, Map.of("message.timestamp.type", "LogAppendTime"));
        for (int partition = 0; partition < 2; partition++) {
            String codec = partition == 0 ? "none" : "lz4";
            try (Writer writer = new Writer(ofBroker, Map.of("compression.type", codec))) {
                for (int i = 0; i < 20; i++) {
                    writer.send(partition, 1_000 + i, text("user-" + i % 3), text("at " + i));
                    if (i % 7 == 6) writer.producer.flush();
                }
                writer.report("committed");
            }
        }
    }

    static void oddRecords(Writer to, int partition) {
        byte[] every = new byte[256];
        IntStream.range(0, 256).forEach(i -> every[i] = (byte) i);
        byte[] user = text("user-1");
        to.send(partition, NOW, null, text("no key"));
        to.send(partition, NOW, new byte[0], text("an empty key"));
        to.send(partition, NOW, null, text("no key again"));
        to.send(partition, NOW, bytes(0xff, 0xfe), text("a key that is not UTF-8"));
        to.send(partition, NOW, text("ключ \u2028 \ud83d\ude00 \"\\"), text("a key of many letters"));
        to.send(partition, NOW, user, null);
        to.send(partition, NOW, null, null);
        to.send(partition, NOW, user, new byte[0]);
        to.send(partition, NOW, user, every);
        to.send(partition, NOW, every, every);
        to.send(partition, NOW, user, text("{\"json\": [1, 2.50, \"\\u0000\"]}\r\n"));
        // These are not in the order of their times.
        to.send(partition, NOW - 86_400_000, user, text("of yesterday"));
        to.send(partition, 0, user, text("of long ago"));
        to.send(partition, NOW, user, text("of now"));

        to.send(partition, NOW, user, text("a header without a value"), header("none", null));
        to.send(partition, NOW, user, text("a header with an empty one"), header("empty", new byte[0]));
        to.send(partition, NOW, user, text("a header without a name"), header("", text("value")));
        to.send(partition, NOW, user, text("the same name again and again"), header("b", text("1")),
                header("a", text("2")), header("b", null), header("a", text("3")), header("b", text("1")));
        to.send(partition, NOW, user, text("headers that are not UTF-8"), header("bytes", every),
                header("заголовок", bytes(0xff)));
        to.send(partition, NOW, user, text("a large header"), header("large", new byte[70_000]));
        to.send(partition, NOW, user, null, IntStream.range(0, 300)
                .mapToObj(i -> header("h" + i, text("v" + i))).toArray(Header[]::new));
        to.send(partition, NOW, user, text("names of ours"), header("eventd-id", text("id-1")),
                header("content-type", text("text/plain; charset=utf-8")), header("eventd-type", text("made")));
        to.send(partition, NOW, user, text("two ids"), header("eventd-id", text("first")),
                header("eventd-id", text("second")));
        to.send(partition, NOW, user, text("an id without a value"), header("eventd-id", null),
                header("eventd-id", text("second")));
        to.send(partition, NOW, user, text("an id that is not UTF-8"), header("eventd-id", bytes(0xff)),
                header("eventd-id", text("second")), header("eventd-type", bytes(0xff)));

        Random random = new Random(partition);
        for (int i = 0; i < 1_000; i++) {
            byte[] value = new byte[random.nextInt(100)];
            random.nextBytes(value);
            to.send(partition, NOW + i % 7, text("user-" + random.nextInt(200)), value);
        }
    }

    /** A batch that is larger than one fetch. One half repeats the same bytes, and the other half is noise. */
    static void largeBatch(Writer to, int partition) {
        Random random = new Random(partition);
        for (int i = 0; i < 24; i++) {
            byte[] value = new byte[100_000];
            random.nextBytes(value);
            for (int at = 0; at < value.length / 2; at++) {
                value[at] = (byte) ('a' + at % 23);
            }
            to.send(partition, NOW, text("user-" + i % 5), value);
        }
    }

    static Header header(String name, byte[] value) {
        return new RecordHeader(name, value);
    }

    /** Producers with and without transactions take turns in an order from the seed. Then one transaction stays open. */
    static void transactions(long seed) throws Exception {
        int partitions = 2;
        Random random = new Random(seed);
        makeTopic(topic, partitions, Map.of());
        List<Writer> writers = new ArrayList<>();
        for (int i = 0; i < 3; i++) {
            String codec = List.of("none", "gzip", "zstd").get(i);
            Writer writer = new Writer(topic, Map.of("transactional.id", topic + i, "compression.type", codec));
            writer.producer.initTransactions();
            writers.add(writer);
        }
        Writer plain = new Writer(topic, Map.of());
        IntFunction<byte[]> value = n -> text("event " + n);
        for (int n = 0; n < 400; n++) {
            int partition = random.nextInt(partitions);
            byte[] user = text("user-" + random.nextInt(6));
            int turn = random.nextInt(writers.size() + 1);
            if (turn == writers.size()) {
                plain.send(partition, NOW + n, user, value.apply(n));
                plain.report("committed");
                continue;
            }
            Writer writer = writers.get(turn);
            if (writer.open++ == 0) writer.producer.beginTransaction();
            writer.send(partition, NOW + n, user, value.apply(n));
            if (random.nextInt(2) == 0) writer.producer.flush();
            if (random.nextInt(6) == 0) writer.end(random.nextBoolean());
        }
        for (Writer writer : writers) {
            if (writer.open > 0) writer.end(random.nextBoolean());
        }
        // The last offsets only have aborted records and their markers.
        Writer last = writers.get(0);
        for (int partition = 0; partition < partitions; partition++) {
            if (last.open++ == 0) last.producer.beginTransaction();
            last.send(partition, NOW, text("user-1"), text("aborted at the end"));
        }
        last.end(false);
        say("ended");
        IN.readLine();

        for (boolean commits : new boolean[] {true, false}) {
            Writer open = writers.get(1);
            Writer later = writers.get(2);
            open.producer.beginTransaction();
            for (int partition = 0; partition < partitions; partition++) {
                open.send(partition, NOW, text("user-1"), text("open"));
                open.send(partition, NOW, text("user-2"), text("open"));
            }
            open.producer.flush();
            later.producer.beginTransaction();
            for (int partition = 0; partition < partitions; partition++) {
                plain.send(partition, NOW, text("user-1"), text("after an open transaction"));
                later.send(partition, NOW, text("user-2"), text("committed after an open transaction"));
            }
            plain.report("committed");
            later.end(true);
            say("open");
            if (IN.readLine() == null) return;
            open.end(commits);
            say("closed");
            if (IN.readLine() == null) return;
        }
        writers.forEach(Writer::close);
        plain.close();
    }

    /** Ten batches with the same few users, and aborted transactions between them. */
    static void compacted() throws Exception {
        makeTopic(topic, 1, Map.of("cleanup.policy", "compact", "min.cleanable.dirty.ratio", "0.001",
                "segment.ms", "1", "delete.retention.ms", "0"));
        try (Writer writer = new Writer(topic, Map.of("compression.type", "lz4"));
                Writer aborting = new Writer(topic, Map.of("transactional.id", topic))) {
            aborting.producer.initTransactions();
            for (int round = 0; round < 10; round++) {
                // Each batch begins a segment. The last segment is not compacted.
                long time = NOW + round * 60_000L;
                for (int i = 0; i < 20; i++) {
                    // Each round also has users of its own, whose records survive compaction.
                    byte[] user = text(i % 7 == 3 ? "once-" + round + "-" + i : "user-" + i);
                    writer.send(0, time, user, text(round + "." + i));
                }
                writer.report("committed");
                if (round % 3 == 1) {
                    aborting.producer.beginTransaction();
                    aborting.send(0, time, text("user-" + round), text("aborted"));
                    aborting.end(false);
                }
            }
        }
    }

    // --- Reading -----------------------------------------------------------------------------------------------------

    /** Prints the records of the topic. Then it answers each line of input, a number of partitions and a key, with a partition. */
    static void reader() throws IOException {
        Map<String, Object> settings = Map.of("bootstrap.servers", brokers, "isolation.level", "read_committed");
        try (KafkaConsumer<byte[], byte[]> consumer =
                new KafkaConsumer<>(settings, new ByteArrayDeserializer(), new ByteArrayDeserializer())) {
            List<TopicPartition> all = consumer.partitionsFor(topic).stream()
                    .map(one -> new TopicPartition(topic, one.partition())).toList();
            consumer.assign(all);
            consumer.seekToBeginning(all);
            Map<TopicPartition, Long> ends = consumer.endOffsets(all);
            long deadline = System.nanoTime() + PATIENCE.toNanos();
            while (all.stream().anyMatch(one -> consumer.position(one) < ends.get(one))) {
                if (System.nanoTime() > deadline) throw new IOException("not read to the end " + ends);
                consumer.poll(Duration.ofSeconds(1)).forEach(record -> line("committed", record));
            }
        }
        say("read");
        for (String line = IN.readLine(); line != null && !line.isEmpty(); line = IN.readLine()) {
            String[] asked = line.split(" ", 2);
            byte[] key = Base64.getDecoder().decode(asked[1]);
            OUT.println(BuiltInPartitioner.partitionForKey(key, Integer.parseInt(asked[0])));
        }
    }
}
