//! What the help of each command says after its flags: examples, exit codes and variables.

pub(super) const PROGRAM: &str = "\
Examples:
  eventd up --dest file-1
      Take events in on localhost:8090, and append them to the file file-1
  eventd help dispatch
      Show the flags of a command, each with its environment variable and default";

/// The examples of a command, and the short and the long end of its help.
macro_rules! ends {
    ($short:ident, $long:ident, $examples:literal, $ending:literal, $explains:literal) => {
        pub(super) const $short: &str = concat!("Examples:\n", $examples, "\n\n`--help` explains ", $explains, ".");
        pub(super) const $long: &str = concat!(
            "Examples:\n",
            $examples,
            "\n\n",
            $ending,
            "\n\n",
            "\
Environment:
  Each [env: …] variable sets its flag. A flag on the command line wins over its variable, and the
  variable wins over the default. A variable that is set but empty is an error. Three variables have
  no flag:
  EVENTD_LOG             Which log lines to write: a level or levels of modules [default: info]
  EVENTD_WEBHOOK_SECRET  The secret that signs http requests, if --webhook-secret-file is not given
  EVENTD_SASL_PASSWORD   The password for the brokers, if --sasl-password-file is not given"
        );
    };
}

ends!(
    UP,
    UP_LONG,
    "  \
  eventd up --dest file-1
      Take events in on localhost:8090, keep them in eventd.db, append them to the file file-1
  eventd up --dest billing=https://billing.example.com/hook --dest audit=file:out/audit.jsonl
      Deliver to two destinations; each continues by itself if the other one is down
  curl localhost:8090/events --json '{\"UserID\": \"user-1\", \"Payload\": 1}'
      Send an event",
    "\
Exit codes:
  0  stopped by a signal, and all work in progress was finished
  1  a failure at run time, for example a port in use
  2  a wrong command line or configuration
  3  stopped with work left, by --drain or a second signal: undelivered events are delivered after
     the next start, and a client has to repeat a request that got no answer

Memory:
  The process needs at most twice --max-pending, --window-bytes, 40KiB for each of
  --max-connections, 128KiB for each of --concurrency, 256 bytes for each of --window, and fixed
  amounts for the log and for each destination. The field memory_bound of a log line at start has
  the sum.",
    "each flag, exit codes and memory"
);

ends!(
    INGEST,
    INGEST_LONG,
    "  \
  eventd ingest --url kafka-1:9092,kafka-2:9092 --listen 0.0.0.0:8090
      Take events in on all addresses, and write them to a Kafka cluster
  eventd ingest --url sqlite:/var/lib/eventd/log.db
      Take events in on localhost:8090, and write them to a database file",
    "\
Exit codes:
  0  stopped by a signal, and all accepted requests were answered
  1  a failure at run time, for example a port in use or no broker that answers
  2  a wrong command line or configuration
  3  stopped with work left, by --drain or a second signal: a client has to repeat a request that
     got no answer

Memory:
  The process needs at most twice --max-pending, 40KiB for each of --max-connections, and a fixed
  amount for the log. The field memory_bound of a log line at start has the sum.",
    "each flag, exit codes and memory"
);

ends!(
    DISPATCH,
    DISPATCH_LONG,
    "  \
  eventd dispatch --url kafka-1:9092 --dest billing=https://billing.example.com/hook
      Deliver to billing; start the same command on several machines to share the partitions
  eventd dispatch --url sqlite:eventd.db --dest file-1 --standby
      Deliver to file-1, or wait until the process that does so ends",
    "\
Exit codes:
  0  stopped by a signal, and all attempts in progress ended
  1  a failure at run time, for example another process delivers to this destination, or a
     partition is stopped
  2  a wrong command line or configuration
  3  stopped with work left, by --drain or a second signal: undelivered events are delivered after
     the next start

Memory:
  The process needs at most --window-bytes, 128KiB for each of --concurrency, 256 bytes for each of
  --window, and a fixed amount for the log and the destination. The field memory_bound of a log line
  at start has the sum.",
    "each flag, exit codes and memory"
);

ends!(
    REPLAY,
    REPLAY_LONG,
    "  \
  eventd replay --dest billing=https://billing.example.com/hook --from 2h
      Show a plan: what billing got in the last two hours. Add --execute to deliver it again
  eventd replay --dest billing=https://billing.example.com/hook --dead --user user-3 --execute
      Deliver the dead letters of one user again
  eventd replay --dest file-1 --from 02:50 --rewind --execute
      Move the position of file-1 back, so that dispatch delivers everything since 02:50 again
  eventd replay --list
      Show past replays, and the ids for --resume",
    "\
Exit codes:
  0  done, or only the plan was asked for
  1  a failure at run time, or a range that the log does not have; or no event was delivered,
     because all were given up again or dropped
  2  a wrong command line or configuration
  3  stopped with work left, by a signal or --stop-after-failures: continue with --resume ID",
    "each flag and the exit codes"
);

ends!(
    CONTROL,
    CONTROL_LONG,
    "  \
  eventd control pause --dest billing --reason \"deploy\" --url kafka-1:9092
      Start no attempt to billing until `eventd control resume --dest billing`
  eventd control rate 50/s --dest billing
      Limit all processes of billing together; `rate off` ends it
  eventd control hold --dest billing --user user-3 --reason \"account locked\"
      Keep the events of one user in the log until `eventd control release`
  eventd control give-up --dest billing --user user-3
      Turn the next event of the user into a dead letter; the next one is tried",
    "\
Exit codes:
  0  applied; or stored, while no process delivers to the destination
  1  a failure at run time, or a user for which there is nothing to do
  2  a wrong command line or configuration
  3  stored, but not applied within --wait, or a signal came: the processes apply it later",
    "each flag and the exit codes"
);
