//! `labctl graph [LAB|FILE]`

use crate::agent::TOPOLOGY;
use crate::client;
use crate::error::CliResult;
use crate::exit;
use crate::output::print;
use crate::topology_file::{TopologyFile, is_file_name};
use clap::ValueEnum;
use ringlab_proto::topology::{Kind, Link, Node, Topology};
use std::fmt::Write;
use std::path::{Path, PathBuf};

/// Arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Topology file, or name of a lab that is up; may be left out where one is.
    #[arg(value_name = "LAB|FILE")]
    pub what: Option<String>,
    /// Language of the drawing.
    #[arg(long = "as", value_enum, default_value_t = Language::Mermaid)]
    pub language: Language,
}

/// `--as`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Language {
    /// For Markdown.
    Mermaid,
    /// For Graphviz.
    Dot,
}

/// Draws a topology.
pub async fn run(args: Args) -> CliResult {
    let path = match args.what.as_deref() {
        Some(file) if is_file_name(file) => PathBuf::from(file),
        lab => Path::new(&client::inspect(lab).await?.run_dir).join(TOPOLOGY),
    };
    let topology = TopologyFile::read_text(&path)?.topology;
    print(&match args.language {
        Language::Mermaid => mermaid(&topology),
        Language::Dot => dot(&topology),
    });
    Ok(exit::OK)
}

/// Names hold letters, digits, `-` and `_` only: nothing needs escaping but a leading digit, hence the `n_`.
fn id(name: &str) -> String {
    format!("n_{}", name.replace('-', "_h"))
}

fn mermaid(topology: &Topology) -> String {
    let mut text = format!("graph LR\n  %% {}\n", topology.name);
    for node in &topology.nodes {
        let label = label(node, "<br/>");
        let (open, close) = match node.kind {
            Kind::Host => ("[", "]"),
            Kind::Router => ("([", "])"),
            Kind::Switch => ("{{", "}}"),
            Kind::Linux { .. } => ("[[", "]]"),
        };
        writeln!(text, "  {}{open}\"{label}\"{close}", id(&node.name)).expect("a string takes all");
    }
    for link in &topology.links {
        let [(a, _), (b, _)] = &link.endpoints;
        writeln!(text, "  {} ---|\"{}\"| {}", id(a), ends(link, "<br/>"), id(b)).expect("a string takes all");
    }
    text
}

fn dot(topology: &Topology) -> String {
    let mut text = format!("graph \"{}\" {{\n  rankdir=LR;\n", topology.name);
    for node in &topology.nodes {
        let shape = match node.kind {
            Kind::Host => "box",
            Kind::Router => "ellipse",
            Kind::Switch => "hexagon",
            Kind::Linux { .. } => "box3d",
        };
        writeln!(text, "  \"{}\" [shape={shape}, label=\"{}\"];", node.name, label(node, "\\n")).expect("a string takes all");
    }
    for link in &topology.links {
        let [(a, _), (b, _)] = &link.endpoints;
        writeln!(text, "  \"{a}\" -- \"{b}\" [label=\"{}\"];", ends(link, "\\n")).expect("a string takes all");
    }
    text.push_str("}\n");
    text
}

/// A node's name and addresses.
fn label(node: &Node, newline: &str) -> String {
    let addresses = node.interfaces.iter().filter_map(|interface| interface.ipv4).map(|net| net.to_string());
    std::iter::once(node.name.clone()).chain(addresses).collect::<Vec<_>>().join(newline)
}

/// A link's interfaces and what it does to frames.
fn ends(link: &Link, newline: &str) -> String {
    let [(_, a), (_, b)] = &link.endpoints;
    let info = crate::agent::file_link_info(link);
    match crate::units::impairments(&info).as_str() {
        "-" => format!("{a} - {b}"),
        impairments => format!("{a} - {b}{newline}{}", impairments.replace("->", "to").replace("<-", "from")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lab() -> Topology {
        let text = "name: t\nnodes: {web-1: {}, sw: {kind: switch}}\nlinks:\n  - endpoints: [\"web-1:eth0\", \"sw:p0\"]\n    delay: 10ms\n";
        ringlab_proto::topology::parse("t.yaml", text).unwrap()
    }

    #[test]
    fn mermaid_has_every_node_and_link() {
        let text = mermaid(&lab());
        assert!(text.starts_with("graph LR\n"));
        assert!(text.contains("n_web_h1[\"web-1<br/>10."), "{text}");
        assert!(text.contains("n_sw{{\"sw\"}}"), "{text}");
        assert!(text.contains("n_web_h1 ---|\"eth0 - p0<br/>10ms\"| n_sw"), "{text}");
    }

    #[test]
    fn dot_has_every_node_and_link() {
        let text = dot(&lab());
        assert!(text.contains("\"sw\" [shape=hexagon") && text.contains("\"web-1\" -- \"sw\" [label=\"eth0 - p0\\n10ms\"];"), "{text}");
    }
}
