//! The carrier of a link, from the command that takes it away to what the hosts make of it.

use crate::crash::{fetches, kill};
use crate::{TWO_HOSTS, Transfer, counter, eventually, in_site, with_stream_server};
use ringlab_tests::lab::Lab;
use serde_json::Value;

/// What a host shows of itself.
fn host(lab: &Lab<'_>, node: &str) -> Value {
    lab.site.json(&["stat", "-l", &lab.name, node])["nodes"][0]["host"].clone()
}

/// The host's eth0.
fn eth0(lab: &Lab<'_>, node: &str) -> Value {
    let host = host(lab, node);
    let interfaces = host["interfaces"].as_array().expect("interfaces");
    interfaces.iter().find(|i| i["name"] == "eth0").expect("eth0").clone()
}

/// How often eth0 has got its carrier, and lost it.
fn changes(lab: &Lab<'_>, node: &str) -> (u64, u64) {
    let counters = eth0(lab, node)["counters"].clone();
    (counter(&counters, "carrier_up_count"), counter(&counters, "carrier_down_count"))
}

fn set_link(lab: &Lab<'_>, state: &str, up: bool) {
    let link = lab.site.json(&["link", state, "-l", &lab.name, "a:eth0"]);
    assert_eq!(link["up"], up, "{link}");
}

fn expect_carrier(lab: &Lab<'_>, nodes: &[&str], on: bool) {
    for node in nodes {
        eventually("the host is told", 5, || eth0(lab, node)["carrier"] == on);
        assert_eq!(eth0(lab, node)["operstate"], if on { "UP" } else { "DOWN" });
        let shown = lab.node(node)["interfaces"][0].clone();
        assert_eq!((&shown["carrier"], &shown["up"]), (&on.into(), &on.into()), "{shown}");
    }
}

#[test]
fn hosts_at_both_ends_are_told_of_a_link_set_down_and_drop_what_they_send() {
    in_site(|site| {
        let lab = site.deploy(TWO_HOSTS);
        assert!(fetches(&lab));
        expect_carrier(&lab, &["a", "b"], true);
        let before = changes(&lab, "b");
        set_link(&lab, "down", false);
        expect_carrier(&lab, &["a", "b"], false);
        let table = site.ok(&["stat", "a"]);
        assert!(table.contains("device eth0 (no carrier)") && table.contains("nic eth0 (no carrier)"), "{table}");
        assert!(site.ok(&["inspect"]).contains("eth0 (down)"));
        let ping = lab.builtin("a", "ping", &["-c", "1", "-W", "1", "b"]).output().expect("starts");
        assert_eq!(ping.status.code(), Some(1), "{ping:?}");
        let a = host(&lab, "a");
        assert!(counter(&a["drops"], "QDISC_DROP") > 0, "{}", a["drops"]);
        let routes = a["routes"].as_array().expect("routes");
        assert!(!routes.is_empty() && routes.iter().all(|r| r["flags"][0] == "linkdown"), "{routes:?}");
        assert!(a["neighbours"].as_array().expect("a list").iter().all(|n| n["state"] != "REACHABLE"), "{a}");
        set_link(&lab, "up", true);
        expect_carrier(&lab, &["a", "b"], true);
        assert!(host(&lab, "a")["routes"].as_array().expect("routes").iter().all(|r| r["flags"] == serde_json::json!([])));
        assert_eq!(changes(&lab, "b"), (before.0 + 1, before.1 + 1));
        eventually("b is reached again", 5, || fetches(&lab));
    });
}

#[test]
fn restarted_host_of_a_link_that_is_down_comes_up_without_a_carrier() {
    in_site(|site| {
        let lab = site.deploy(TWO_HOSTS);
        set_link(&lab, "down", false);
        site.ok(&["restart", "-l", &lab.name, "a"]);
        expect_carrier(&lab, &["a", "b"], false);
        set_link(&lab, "up", true);
        expect_carrier(&lab, &["a", "b"], true);
        eventually("b is reached again", 5, || fetches(&lab));
    });
}

#[test]
fn transfer_survives_two_seconds_without_a_carrier() {
    in_site(|site| {
        let lab = site.deploy(&with_stream_server(TWO_HOSTS));
        let transfer = Transfer::start(&lab, "b");
        set_link(&lab, "down", false);
        let uptime = || host(&lab, "a")["uptime_ns"].as_u64().expect("a number");
        let down_at = uptime();
        expect_carrier(&lab, &["a", "b"], false);
        eventually("two seconds of the host have passed", 10, || uptime() >= down_at + 2_000_000_000);
        assert!(counter(&host(&lab, "a")["drops"], "QDISC_DROP") > 0);
        set_link(&lab, "up", true);
        transfer.expect_verified();
        expect_carrier(&lab, &["a", "b"], true);
    });
}

#[test]
fn killed_nicd_takes_the_carrier_from_its_peer_and_gives_it_back() {
    in_site(|site| {
        let lab = site.deploy(TWO_HOSTS);
        assert!(fetches(&lab));
        let before = changes(&lab, "a");
        kill(lab.pid("b", "nicd"));
        // It is away for some milliseconds: what stays of it is counted.
        eventually("the carrier was lost and is back", 10, || changes(&lab, "a") == (before.0 + 1, before.1 + 1));
        expect_carrier(&lab, &["a", "b"], true);
        eventually("b is reached again", 10, || fetches(&lab));
    });
}
