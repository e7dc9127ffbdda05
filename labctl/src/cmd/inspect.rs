//! `labctl inspect [LAB]`

use crate::cli::Format;
use crate::error::CliResult;
use crate::output::{print, print_json, print_table, table};
use crate::{client, exit, json, units};
use ringlab_proto::agent::{InspectReply, NodeInfo};

/// Arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name of the lab; may be left out where one is up.
    pub lab: Option<String>,
}

/// Shows a lab.
pub async fn run(args: Args, format: Format) -> CliResult {
    let lab = client::inspect(args.lab.as_deref()).await?;
    if format == Format::Json {
        print_json(&json::inspect(&lab));
    } else {
        show(&lab);
    }
    Ok(exit::OK)
}

fn show(lab: &InspectReply) {
    print(&format!("lab {}   seed {}   file {}   run directory {}\n\n", lab.name, lab.seed, lab.path, lab.run_dir));
    let mut nodes = table(&["node", "kind", "state", "interface", "ipv4", "mac", "mtu", "cpu", "nicd", "hostd", "restarts"]);
    for node in &lab.nodes {
        for row in rows(node) {
            nodes.add_row(row);
        }
    }
    print_table(&nodes);
    if lab.links.is_empty() {
        return;
    }
    print("\n");
    let mut links = table(&["link", "", "medium", "state", "impairments"]);
    for link in &lab.links {
        let state = if link.up { "up" } else { "down" };
        links.add_row([&link.a, &link.b, &link.medium, state, &units::impairments(link)]);
    }
    print_table(&links);
}

/// A row an interface; what is the node's stands in the first.
fn rows(node: &NodeInfo) -> Vec<[String; 11]> {
    let pid = |pid: u32| if pid == 0 { "-".to_owned() } else { pid.to_string() };
    let own = [pid(node.nicd_pid), pid(node.hostd_pid), node.restarts.to_string()];
    let count = node.interfaces.len().max(1);
    let row = |position: usize| {
        let once = |text: &str| if position == 0 { text.to_owned() } else { String::new() };
        let interface = node.interfaces.get(position);
        let text = |of: fn(&ringlab_proto::agent::InterfaceInfo) -> String| interface.map_or_else(|| "-".to_owned(), of);
        [
            once(&node.name),
            once(&node.kind),
            once(&node.state),
            text(|i| match (i.up, i.carrier) {
                (false, _) => format!("{} (down)", i.name),
                (true, false) => format!("{} (no carrier)", i.name),
                (true, true) => i.name.clone(),
            }),
            text(|i| if i.ipv4.is_empty() { "-".to_owned() } else { i.ipv4.join(" ") }),
            text(|i| i.mac.clone()),
            text(|i| i.mtu.to_string()),
            once(&node.cpu.to_string()),
            once(&own[0]),
            once(&own[1]),
            once(&own[2]),
        ]
    };
    (0..count).map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use ringlab_proto::agent::InterfaceInfo;

    #[test]
    fn node_stands_once_before_its_interfaces() {
        let interface = |name: &str| InterfaceInfo { name: name.into(), up: true, carrier: true, ..InterfaceInfo::default() };
        let node = NodeInfo { name: "r1".into(), interfaces: vec![interface("eth0"), interface("eth1")], ..NodeInfo::default() };
        let rows = rows(&node);
        assert_eq!((rows[0][0].as_str(), rows[1][0].as_str()), ("r1", ""));
        assert_eq!((rows[0][3].as_str(), rows[1][3].as_str()), ("eth0", "eth1"));
        let lost = NodeInfo { interfaces: vec![InterfaceInfo { carrier: false, ..interface("eth0") }], ..NodeInfo::default() };
        assert_eq!(super::rows(&lost)[0][3], "eth0 (no carrier)");
        assert_eq!(super::rows(&NodeInfo::default()).len(), 1);
    }
}
