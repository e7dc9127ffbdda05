//! A lab, deployed with `labctl` under a state directory of its own (and so an
//! agent of its own: tests do not meet).

use crate::reach::{Reachable, temporary};
use crate::{fresh_dir, stale};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

/// A topology: `a`, and `b` which serves pages, with a router between them.
pub const ROUTED: &str = "name: routed
nodes:
  a: {}
  r: {kind: router}
  b:
    run:
      - {builtin: httpd, args: [-p, 80, --body, hello], ready: {tcp: 80}}
links:
  - endpoints: [\"a:eth0\", \"r:eth0\"]
    ipv4: [10.0.1.1/24, 10.0.1.254/24]
  - endpoints: [\"r:eth1\", \"b:eth0\"]
    ipv4: [10.0.2.254/24, 10.0.2.1/24]
";

/// A state directory: one agent and its labs.
pub struct Site {
    /// `RINGLAB_DIR` of everything below.
    pub dir: PathBuf,
    programs: Reachable,
    for_others: bool,
}

impl Site {
    /// An empty one.
    ///
    /// # Panics
    /// If the directory cannot be made, or the programs have not been built.
    pub fn new() -> Self {
        Self { dir: fresh_dir(stale::SITE), programs: Reachable::built(), for_others: false }
    }

    /// An empty one whose programs another user reaches, too.
    ///
    /// # Panics
    /// As [`Self::new`].
    pub fn for_others() -> Self {
        Self { dir: fresh_dir(stale::SITE), programs: Reachable::programs(), for_others: true }
    }

    /// A `labctl` command.
    pub fn labctl(&self, args: &[&str]) -> Command {
        let mut c = Command::new(self.programs.dir.join("labctl"));
        c.args(args).env("RINGLAB_DIR", &self.dir).env("NO_COLOR", "1").env("CI", "true").stdin(Stdio::null());
        if self.for_others {
            // The test's own directories may be such as they cannot enter.
            c.current_dir(&self.dir).env("TMPDIR", temporary());
        }
        c
    }

    /// Runs `labctl`.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn run(&self, args: &[&str]) -> Output {
        self.labctl(args).output().expect("labctl starts")
    }

    /// Runs `labctl` and expects exit status 0; standard output.
    ///
    /// # Panics
    /// If it fails.
    pub fn ok(&self, args: &[&str]) -> String {
        let out = self.run(args);
        let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
        assert!(out.status.success(), "labctl {args:?}: {}\n{}\n{}\n{}", out.status, text(&out.stdout), text(&out.stderr), self.logs());
        text(&out.stdout)
    }

    /// Runs `labctl … --format json` and parses what it prints.
    ///
    /// # Panics
    /// If it fails or prints something else.
    pub fn json(&self, args: &[&str]) -> Value {
        let mut args = args.to_vec();
        args.extend(["--format", "json"]);
        let text = self.ok(&args);
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("labctl {args:?} prints no JSON ({e}): {text}"))
    }

    /// Writes a topology file.
    ///
    /// # Panics
    /// If it cannot be written.
    pub fn file(&self, name: &str, yaml: &str) -> String {
        let path = self.dir.join(name);
        std::fs::write(&path, yaml).expect("the topology is written");
        path.to_str().expect("a path in UTF-8").to_string()
    }

    /// Writes and deploys a topology.
    ///
    /// # Panics
    /// If it fails.
    pub fn deploy(&self, yaml: &str) -> Lab<'_> {
        let name = yaml.lines().find_map(|l| l.strip_prefix("name: ")).expect("a name").trim().to_string();
        let file = self.file(&format!("{name}.yaml"), yaml);
        self.ok(&["deploy", &file]);
        Lab { site: self, name, file }
    }

    /// The last lines of all daemons' logs, for the message of a failing test.
    pub fn logs(&self) -> String {
        let mut text = String::new();
        collect_logs(&self.dir, &mut text);
        text
    }
}

/// A command, started by another one that takes it as its last arguments: with its directory and environment.
pub fn started_by(mut wrapper: Command, command: &Command) -> Command {
    wrapper.arg(command.get_program()).args(command.get_args()).stdin(Stdio::null());
    wrapper.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    if let Some(dir) = command.get_current_dir() {
        wrapper.current_dir(dir);
    }
    wrapper
}

fn collect_logs(dir: &Path, text: &mut String) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            collect_logs(&path, text);
        } else if path.extension().is_some_and(|e| e == "log") {
            let log = std::fs::read_to_string(&path).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            text.push_str(&format!("--- {}\n{}\n", path.display(), lines[lines.len().saturating_sub(15)..].join("\n")));
        }
    }
}

impl Default for Site {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        stale::end_site(&self.dir);
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// A deployed lab; destroyed with its [`Site`].
pub struct Lab<'a> {
    /// Where.
    pub site: &'a Site,
    /// Its name.
    pub name: String,
    /// Its topology file.
    pub file: String,
}

impl Lab<'_> {
    /// Command for a built-in program on a node.
    pub fn builtin(&self, node: &str, program: &str, args: &[&str]) -> Command {
        let mut all = vec!["exec", "-l", &self.name, node, "--builtin", program, "--"];
        all.extend(args);
        self.site.labctl(&all)
    }

    /// Command for a real program on a `linux` node.
    pub fn program(&self, node: &str, args: &[&str]) -> Command {
        let mut all = vec!["exec", "-l", &self.name, node, "--"];
        all.extend(args);
        self.site.labctl(&all)
    }

    /// Starts a command whose output is read later.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn spawn(&self, mut command: Command) -> Child {
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("labctl starts")
    }

    /// Runs a command and expects exit status 0; standard output.
    ///
    /// # Panics
    /// If it fails.
    pub fn ok(&self, mut command: Command) -> String {
        let out = command.output().expect("labctl starts");
        let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
        assert!(out.status.success(), "{command:?}: {}\n{}\n{}\n{}", out.status, text(&out.stdout), text(&out.stderr), self.site.logs());
        text(&out.stdout)
    }

    /// As [`Self::ok`], output parsed as JSON.
    ///
    /// # Panics
    /// If it fails or prints something else.
    pub fn json(&self, command: Command) -> Value {
        let text = self.ok(command);
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("no JSON ({e}): {text}"))
    }

    /// `labctl inspect`.
    pub fn inspect(&self) -> Value {
        self.site.json(&["inspect", &self.name])
    }

    /// A node of [`Self::inspect`].
    ///
    /// # Panics
    /// If there is no such node.
    pub fn node(&self, node: &str) -> Value {
        let all = self.inspect();
        let nodes = all["nodes"].as_array().expect("nodes").clone();
        nodes.into_iter().find(|n| n["name"] == node).unwrap_or_else(|| panic!("no node {node} in {all}"))
    }

    /// Process number of a node's `nicd` or `hostd`.
    ///
    /// # Panics
    /// If it is not running.
    pub fn pid(&self, node: &str, daemon: &str) -> i32 {
        let n = self.node(node);
        let pid = n[format!("{daemon}_pid")].as_i64().unwrap_or(0);
        assert!(pid > 1, "{daemon} of {node} is not running: {n}");
        pid as i32
    }
}
