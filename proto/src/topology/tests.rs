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

fn host(fields: &str) -> String {
    format!("name: t\nnodes:\n  h:\n    {}\n", fields.replace('\n', "\n    "))
}

#[test]
fn files_of_a_node_are_read() {
    let t = ok(&host(
        "preload: false\nroot: rootfs\nbinds: [\"./a:/srv//a\", \"/b:/b:ro\"]\nenv: {A: 1, B: \"x y\"}\nworkdir: /srv\nuser: 1000:5",
    ));
    let bind = |source: &str, destination: &str, read_only| Bind { source: source.into(), destination: destination.into(), read_only };
    let want = Files {
        root: Some("rootfs".into()),
        binds: vec![bind("./a", "/srv/a", false), bind("/b", "/b", true)],
        env: [("A".to_owned(), "1".to_owned()), ("B".into(), "x y".into())].into(),
        workdir: Some("/srv".into()),
        user: Some("1000:5".into()),
        no_preload: true,
    };
    assert_eq!(t.nodes[0].files, want);
    assert_eq!(ok("name: t\nnodes: {l: {kind: linux, env: {A: b}, workdir: /}}\n").nodes[0].files.workdir.as_deref(), Some("/"));
}

#[test]
fn mistakes_in_files_of_a_node_say_what_to_write() {
    let cases = [
        ("root: \"\"", "4:11: `root` names no directory"),
        ("binds: [a]", "4:13: `a` is not a bind | binds: [\"./conf:/etc/app:ro\"]"),
        ("binds: [\"a:/b:rw:x\"]", "4:13: `a:/b:rw:x` is not a bind"),
        ("binds: [\"a:/b:zz\"]", "4:13: `zz` is not an option of a bind"),
        ("binds: [\"a:b\"]", "4:13: `b` cannot be the destination"),
        ("binds: [\"a:/\"]", "4:13: `/` cannot be the destination"),
        ("binds: [\"a:/x/../y\"]", "4:13: `/x/../y` cannot be the destination"),
        ("binds: [\"a:/x\", \"b:/x/\"]", "4:21: `/x` is bound twice"),
        ("workdir: srv", "4:14: `srv` is not an absolute path"),
        ("user: \"a b\"", "4:11: `a b` is neither a user's name nor a number"),
        ("env: {\"A=B\": c}", "4:11: `A=B` cannot be a variable"),
    ];
    for (fields, want) in cases {
        let found = bad(&host(fields));
        assert!(found[0].starts_with(&format!("lab.yaml:{want}")), "{fields}: {found:?}");
    }
    assert!(bad("name: t\nnodes: {s: {kind: switch, env: {A: b}}}\n")[0].contains("has no `env`"));
    assert!(bad("name: t\nnodes: {s: {kind: linux, root: x}}\n")[0].contains("has no `root`"));
}

#[test]
fn paths_that_are_not_there_are_mistakes_where_the_file_is_known() {
    let base = std::env::temp_dir().join(format!("ringlab-topology-{}", std::process::id()));
    std::fs::create_dir_all(base.join("root/etc")).expect("a fresh directory");
    std::fs::write(base.join("root/etc/passwd"), "web:x:33:33::/srv:/bin/sh\n").expect("written");
    std::os::unix::fs::symlink("/etc", base.join("root/conf")).expect("linked");
    let look = |fields: &str| match parse_in("lab.yaml", &host(fields), &base) {
        Ok(_) => String::new(),
        Err(problems) => problems.lines().next().unwrap_or_default(),
    };
    assert_eq!(look("root: root\nbinds: [\"root:/made\"]\nworkdir: /made/x\nuser: web"), "");
    assert_eq!(look("root: root\nworkdir: /conf"), "", "a link leads within the root");
    assert!(look("root: nothing").starts_with("lab.yaml:4:11: there is no directory"));
    assert!(look("root: root/etc/passwd").contains("is not a directory"));
    assert!(look("root: root\nbinds: [\"none:/x\"]").starts_with("lab.yaml:5:13: there is no "));
    assert!(look("binds: [\"root:/no/such/place\"]").contains("this machine has no /no/such/place to bind over"));
    assert!(look("root: root\nbinds: [\"root:/etc/passwd\"]").contains("is a directory, /etc/passwd is a file"));
    assert!(look("root: root\nworkdir: /srv").contains("there is no directory /srv in"));
    assert!(look("root: root\nuser: www").contains("there is no user `www` in"));
    assert_eq!(look("root: root\nuser: 4711"), "");
    // A lab that is up is read again without them.
    assert!(parse("lab.yaml", &host("root: nothing")).is_ok());
    std::fs::remove_dir_all(&base).expect("removed");
}
