use super::*;

fn ok(text: &str) -> Topology {
    parse("lab.yaml", text).unwrap_or_else(|p| panic!("{:?}", p.lines().collect::<Vec<_>>()))
}

/// The mistakes as `line:column: message | help`.
fn bad(text: &str) -> Vec<String> {
    let problems = parse("lab.yaml", text).expect_err("the file has mistakes");
    problems.lines().zip(&problems.problems).map(|(line, p)| format!("{line} | {}", p.help.as_deref().unwrap_or(""))).collect()
}

const TWO: &str = "name: t\nnodes: {a: {}, b: {}, s: {kind: switch}}\nlinks:\n";

fn link(rest: &str) -> String {
    format!("{TWO}  - {{endpoints: [\"a:eth0\", \"b:eth0\"], {rest}}}\n")
}

#[test]
fn shipped_topologies_are_valid() {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../topologies");
    let mut count = 0;
    for entry in std::fs::read_dir(dir).expect("topologies/") {
        let path = entry.expect("entry").path();
        let text = std::fs::read_to_string(&path).expect("text");
        ok(&text);
        count += 1;
    }
    assert!(count >= 5, "only {count} files found");
}

#[test]
fn hosts_behind_one_switch_share_a_subnet() {
    let t = ok(
        "name: t\nnodes: {a: {}, b: , s: {kind: switch}, c: {}}\nlinks:\n- endpoints: [\"a:eth0\", \"s:p0\"]\n- endpoints: [\"s:p1\", \"b:eth0\"]\n- endpoints: [\"a:eth1\", \"c:eth0\"]\n",
    );
    let ip = |n: usize, i: usize| t.nodes[n].interfaces[i].ipv4.map(|a| a.to_string());
    assert_eq!(ip(0, 0).as_deref(), Some("10.0.0.1/24"));
    assert_eq!(ip(1, 0).as_deref(), Some("10.0.0.2/24"));
    assert_eq!(ip(2, 0), None);
    assert_eq!(ip(0, 1).as_deref(), Some("10.0.1.1/24"));
    assert_eq!(ip(3, 0).as_deref(), Some("10.0.1.2/24"));
}

#[test]
fn allocation_avoids_given_addresses_and_subnets() {
    let t = ok(
        "name: t\nnodes: {a: {}, b: {}, c: {}}\nlinks:\n- {endpoints: [\"a:e0\", \"b:e0\"], ipv4: [10.0.0.1/24, null]}\n- endpoints: [\"b:e1\", \"c:e0\"]\n",
    );
    assert_eq!(t.nodes[1].interfaces[0].ipv4.map(|a| a.to_string()).as_deref(), Some("10.0.0.2/24"));
    assert_eq!(t.nodes[2].interfaces[0].ipv4.map(|a| a.to_string()).as_deref(), Some("10.0.1.2/24"));
}

#[test]
fn direction_overrides_link() {
    let t = ok(&link("delay: 10ms, loss: 1%, forward: {delay: 30ms}, backward: {rate: 1mbit}"));
    assert_eq!(t.links[0].forward, Impairment { delay: Duration::from_millis(30), rate_bps: 0, loss: 0.01 });
    assert_eq!(t.links[0].backward, Impairment { delay: Duration::from_millis(10), rate_bps: 1_000_000, loss: 0.01 });
}

#[test]
fn macs_are_stable_unique_and_local() {
    let text = link("mtu: 9000");
    let (a, b) = (ok(&text), ok(&text));
    assert_eq!(a, b);
    let (x, y) = (a.nodes[0].interfaces[0].mac, a.nodes[1].interfaces[0].mac);
    assert_ne!(x, y);
    assert_eq!(x[0] & 3, 2);
    assert_ne!(ok(&format!("seed: 1\n{text}")).nodes[0].interfaces[0].mac, x);
}

#[test]
fn unknown_field_names_the_nearest_one() {
    assert_eq!(bad(&link("dealy: 1ms")), ["lab.yaml:4:39: unknown field `dealy` | did you mean `delay`?"]);
    assert!(bad("name: t\nnodes: {a: {knd: switch}}\n")[0].contains("did you mean `kind`?"));
    assert!(bad(&link("jitter: 1ms"))[0].contains("not supported yet"));
}

#[test]
fn unknown_kind_names_the_nearest_one() {
    assert!(bad("name: t\nnodes: {a: {kind: swich}}\n")[0].ends_with("did you mean `switch`?"));
}

#[test]
fn endpoint_mistakes_say_what_to_write() {
    let twice = bad(&format!("{TWO}  - endpoints: [\"a:eth0\", \"b:eth0\"]\n  - endpoints: [\"a:eth0\", \"s:p0\"]\n"));
    assert_eq!(twice.len(), 1);
    assert!(twice[0].starts_with("lab.yaml:5:17: endpoint `a:eth0` is used twice"), "{twice:?}");
    assert!(bad(&format!("{TWO}  - endpoints: [\"a:eth0\", \"bb:eth0\"]\n"))[0].ends_with("did you mean `b:eth0`?"));
    assert!(bad(&format!("{TWO}  - endpoints: [\"a:eth0\", b]\n"))[0].contains("write `b:eth0`"));
    assert!(bad(&format!("{TWO}  - endpoints: [\"a:eth0\"]\n"))[0].contains("two endpoints, not 1"));
    assert!(bad(&format!("{TWO}  - endpoints: [\"a:ethernet-number-0\", \"b:eth0\"]\n"))[0].contains("too long for an interface name"));
    assert!(bad(&format!("{TWO}  - endpoints: [\"a:lo\", \"b:eth0\"]\n"))[0].contains("cannot be an interface name"));
}

#[test]
fn address_mistakes_say_what_to_write() {
    assert!(
        bad(&link("ipv4: [10.0.0.1/24, 10.0.0.1/24]"))[0].contains("address 10.0.0.1 is used twice | write another, such as `10.0.0.2/24`")
    );
    assert!(bad(&link("ipv4: [10.0.0.1/24, 10.0.1.2/24]"))[0].contains("10.0.1.2/24 lies outside the subnet of this network, 10.0.0.0/24"));
    assert!(bad(&link("ipv4: [10.0.0.0/24, 10.0.0.1/24]"))[0].contains("10.0.0.0 cannot be a host's address"));
    assert!(bad(&link("ipv4: [10.0.0.1, 10.0.0.2/24]"))[0].contains("write `10.0.0.1/24`"));
    assert!(bad(&link("ipv4: [300.0.0.1/24, null]"))[0].contains("not an address"));
    let switch = format!("{TWO}  - {{endpoints: [\"a:eth0\", \"s:p0\"], ipv4: [10.0.0.1/24, 10.0.0.2/24]}}\n");
    assert!(bad(&switch)[0].contains("`s` is a switch: its ports have no address"));
    let overlap = "name: t\nnodes: {a: {}, b: {}}\nlinks:\n- {endpoints: [\"a:e0\", \"b:e0\"], ipv4: [10.0.0.1/16, null]}\n- {endpoints: [\"a:e1\", \"b:e1\"], ipv4: [10.0.7.1/24, null]}\n";
    assert!(bad(overlap)[0].contains("overlaps the subnet of another network"));
}

#[test]
fn yaml_mistakes_have_a_place() {
    assert!(bad("name: t\nname: u\nnodes: {a: {}}\n")[0].starts_with("lab.yaml:2:1: key `name` stands twice"));
    assert!(bad("name: t\nnodes: {a: {}, a: {}}\n")[0].contains("key `a` stands twice"));
    assert!(bad("name: t\nnodes: {a: {}\n")[0].starts_with("lab.yaml:"));
    assert!(bad("nodes: {a: {}}\n")[0].contains("field `name` is missing"));
    assert!(bad("")[0].starts_with("lab.yaml"));
    assert!(bad("name: t\nnodes: {a: {cpus: many}}\n")[0].starts_with("lab.yaml:2:"));
}

#[test]
fn every_mistake_is_reported_at_once() {
    let problems = bad(&link("delay: 5, rate: fast, loss: 200%, mtu: 1"));
    assert_eq!(problems.len(), 4, "{problems:?}");
    assert!(problems[0].contains("`5ms`"));
}

#[test]
fn fields_that_mean_nothing_on_a_kind_are_refused() {
    assert!(bad("name: t\nnodes: {s: {kind: switch, cpus: 2}}\n")[0].contains("a node of kind `switch` has no `cpus`"));
    assert!(bad("name: t\nnodes: {h: {netns: /x}}\n")[0].contains("a node of kind `host` has no `netns`"));
    assert!(bad("name: t\nnodes: {h: {nic: {rx-ring: 100}}}\n")[0].ends_with("write `128`"));
    assert!(bad("name: t\nnodes: {h: {cpus: 2, nic: {irq-affinity: [0, 2]}}}\n")[0].contains("no CPU 2"));
}

#[test]
fn hostile_files_end_quickly_with_a_problem() {
    let huge = "x".repeat(MAX_FILE as usize + 1);
    assert!(bad(&huge)[0].contains("at most 4 MiB"));
    let deep = format!("name: t\nnodes: {}1{}\n", "[".repeat(100_000), "]".repeat(100_000));
    assert_eq!(bad(&deep).len(), 1);
    let mut bomb = String::from("name: t\na0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
    for i in 1..12 {
        let refs = vec![format!("*a{}", i - 1); 10].join(", ");
        bomb.push_str(&format!("a{i}: &a{i} [{refs}]\n"));
    }
    bomb.push_str("nodes: *a11\n");
    let started = std::time::Instant::now();
    assert_eq!(bad(&bomb).len(), 1);
    assert!(started.elapsed() < Duration::from_secs(2));
    let inside = format!(
        "name: t\nnodes:\n  h:\n    sysctls: &s {{net.a: 1}}\n{}",
        (0..5000).map(|i| format!("  h{i}: {{sysctls: *s}}\n")).collect::<String>()
    );
    assert_eq!(bad(&inside).len(), 1, "too many aliases");
}

#[test]
fn schema_knows_the_fields() {
    let schema = json_schema();
    assert!(schema["properties"]["nodes"].is_object());
    let text = schema.to_string();
    for field in ["endpoints", "rx-usecs", "txqueuelen", "backward", "checks"] {
        assert!(text.contains(field), "{field} is missing from the schema");
    }
}

proptest::proptest! {
    #[test]
    fn no_text_makes_the_parser_panic(text in "[ -~\n]{0,200}") {
        let _ = parse("lab.yaml", &text);
    }

    #[test]
    fn a_cut_file_never_panics(cut in 0usize..800) {
        let text = include_str!("../../../topologies/quickstart.yaml");
        let _ = parse("lab.yaml", text.get(..cut.min(text.len())).unwrap_or(""));
    }
}
