// Reads compose.yaml as Docker would, and looks for what else would go wrong only at a start. For compose/check.

import java.io.FileReader;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.TreeSet;
import org.yaml.snakeyaml.LoaderOptions;
import org.yaml.snakeyaml.Yaml;
import org.yaml.snakeyaml.constructor.SafeConstructor;

public class Check {
    static final Set<String> CONDITIONS =
            Set.of("service_started", "service_healthy", "service_completed_successfully");
    static int faults = 0;

    static void expect(boolean holds, String otherwise) {
        if (!holds) {
            faults++;
            System.err.println("compose.yaml: " + otherwise);
        }
    }

    @SuppressWarnings("unchecked")
    static Map<String, Object> map(Object value) {
        return value == null ? Map.of() : (Map<String, Object>) value;
    }

    static List<?> list(Object value) {
        return value == null ? List.of() : (List<?>) value;
    }

    // What ${NAME:-TEXT} is where NAME is not set.
    static String byDefault(Object argument) {
        return argument.toString().replaceAll("\\$\\{[A-Z_]+:-([^}]*)}", "$1");
    }

    // Prints the arguments of each service that is eventd, one a line, separated by tabs.
    public static void main(String[] args) throws Exception {
        String kafkaImage = "apache/kafka:" + args[1];
        LoaderOptions options = new LoaderOptions();
        options.setAllowDuplicateKeys(false);
        Map<String, Object> file;
        try (FileReader reader = new FileReader(args[0])) {
            file = map(new Yaml(new SafeConstructor(options)).load(reader));
        }
        Map<String, Object> services = map(file.get("services"));
        Set<String> mounted = new TreeSet<>();
        services.forEach((name, value) -> {
            Map<String, Object> service = map(value);
            String image = (String) service.get("image");
            expect(image != null, name + " has no image");
            if (image != null && image.startsWith("apache/kafka")) {
                expect(image.equals(kafkaImage), name + " is " + image + ", pom.xml has " + kafkaImage);
            }
            map(service.get("depends_on")).forEach((other, how) -> {
                Object condition = map(how).get("condition");
                expect(services.containsKey(other), name + " waits for '" + other + "', which is no service");
                expect(CONDITIONS.contains(condition), name + " waits for '" + condition + "', which is no condition");
                expect(!"service_healthy".equals(condition) || map(services.get(other)).containsKey("healthcheck"),
                        name + " waits for " + other + " to be healthy, which has no healthcheck");
            });
            for (Object volume : list(service.get("volumes"))) {
                mounted.add(volume.toString().split(":")[0]);
            }
            for (Object port : list(service.get("ports"))) {
                expect(port.toString().startsWith("127.0.0.1:"), name + " opens port " + port + " to other machines");
            }
            map(service.get("environment")).forEach((key, text) ->
                    expect(text instanceof String, name + ": " + key + " is not a string, quote it"));
            if ("eventd".equals(image)) {
                expect(service.get("command") instanceof List, name + " has no list of arguments");
                System.out.println(
                        String.join("\t", list(service.get("command")).stream().map(Check::byDefault).toList()));
            }
        });
        expect(services.size() > 0, "no services");
        expect(mounted.equals(new TreeSet<>(map(file.get("volumes")).keySet())),
                "mounts " + mounted + " and declares " + map(file.get("volumes")).keySet());
        System.exit(faults == 0 ? 0 : 1);
    }
}
