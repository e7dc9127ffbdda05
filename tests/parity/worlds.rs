//! The two worlds in which a program runs: real namespaces, emulated hosts.

use ringlab_tests::fresh_dir;
use ringlab_tests::lab::{Lab, Site};
use ringlab_tests::veth::{ADDR, Veth};
use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Nodes of the lab.
const HOSTS: [&str; 2] = ["a", "b"];

/// Longest run of one family or chunk of sequences.
const LIMIT: Duration = Duration::from_secs(150);

/// What Linux takes from the machine it runs on is pinned (`hostd` has these values), and no limit on ICMP messages
/// lets one case depend on how many errors those before it caused.
const PINNED: &[(&str, &str)] = &[
    ("net.ipv4.tcp_rmem", "4096 131072 6291456"),
    ("net.ipv4.tcp_wmem", "4096 16384 4194304"),
    // CUBIC is not always permitted in a namespace.
    ("net.ipv4.tcp_congestion_control", "reno"),
    ("net.ipv4.icmp_ratelimit", "0"),
    ("net.ipv4.icmp_msgs_per_sec", "100000"),
    ("net.ipv4.icmp_msgs_burst", "100000"),
];

/// The compiled program.
pub struct Program {
    dir: PathBuf,
}

impl Program {
    /// Compiles `c/` in a directory of its own.
    ///
    /// # Panics
    /// If there is no C compiler, or it complains.
    pub fn compile() -> Self {
        let program = Self { dir: fresh_dir("ringlab-parity-") };
        let sources = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/parity/c")).expect("c/");
        let sources = sources.map(|e| e.expect("entry").path()).filter(|p| p.extension().is_some_and(|e| e == "c"));
        let mut cc = Command::new("cc");
        cc.args(["-std=gnu11", "-O1", "-Wall", "-Wextra", "-Werror", "-pthread", "-o"]).arg(program.path()).args(sources);
        let out = cc.output().expect("a C compiler is installed by tests/setup.sh");
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        program
    }

    fn path(&self) -> PathBuf {
        self.dir.join("parity")
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// Both worlds.
pub struct Worlds<'a> {
    program: &'a Program,
    veth: Veth,
    site: Site,
}

impl<'a> Worlds<'a> {
    /// Makes the namespaces and deploys the lab.
    pub fn new(program: &'a Program) -> Self {
        let veth = Veth::new();
        for (end, addr) in ADDR.iter().enumerate() {
            let pins = PINNED.iter().map(|(name, value)| format!("{name}={value}"));
            let args: Vec<String> = ["-qw".to_owned()].into_iter().chain(pins).collect();
            veth.ok(end, "sysctl", &args.iter().map(String::as_str).collect::<Vec<_>>());
            veth.ok(end, "ip", &["addr", "flush", "dev", "eth0"]);
            veth.ok(end, "ip", &["addr", "add", &format!("{addr}/24"), "brd", "+", "dev", "eth0"]);
        }
        let site = Site::new();
        let worlds = Self { program, veth, site };
        let sysctls: Vec<String> = PINNED.iter().map(|(name, value)| format!("{name}: \"{value}\"")).collect();
        let sysctls = sysctls.join(", ");
        worlds.site.deploy(&format!(
            "name: parity\nnodes:\n  a: {{sysctls: {{{sysctls}}}}}\n  b: {{sysctls: {{{sysctls}}}}}\nlinks:\n  - endpoints: [\"a:eth0\", \"b:eth0\"]\n    ipv4: [{}/24, {}/24]\n",
            ADDR[0], ADDR[1]
        ));
        worlds
    }

    /// What the program prints on Linux, and on the emulated hosts.
    ///
    /// # Panics
    /// If it cannot be run, or does not end.
    pub fn both(&self, args: &[&str]) -> (String, String) {
        std::thread::scope(|scope| {
            let linux = scope.spawn(|| self.linux(args));
            let ours = self.emulated(args);
            (linux.join().expect("the run on Linux"), ours)
        })
    }

    /// A command at one end: on Linux, and on the emulated host.
    pub fn commands(&self, end: usize, args: &[&str]) -> [Command; 2] {
        [self.veth.command(end, args[0], &args[1..]), self.lab().program(HOSTS[end], args)]
    }

    /// Gives the real interfaces the link addresses and the qdisc of the emulated hosts' ones, and takes IPv6 from them.
    pub fn make_links_alike(&self) {
        for (end, host) in HOSTS.iter().enumerate() {
            let address = self.lab().ok(self.lab().program(host, &["cat", "/sys/class/net/eth0/address"]));
            self.veth.ok(end, "ip", &["link", "set", "eth0", "address", address.trim()]);
            self.veth.ok(end, "tc", &["qdisc", "replace", "dev", "eth0", "root", "pfifo_fast"]);
            self.veth.ok(end, "sysctl", &["-qw", "net.ipv6.conf.all.disable_ipv6=1"]);
            // Names of hosts are the lab's here, and nobody's there.
            self.veth.ok(end, "ip", &["neigh", "flush", "all"]);
        }
    }

    fn lab(&self) -> Lab<'_> {
        Lab { site: &self.site, name: "parity".to_owned(), file: String::new() }
    }

    fn linux(&self, args: &[&str]) -> String {
        let path = self.program.path();
        let program = path.to_str().expect("UTF-8");
        run(args, |end, args| self.veth.command(end, program, args))
    }

    fn emulated(&self, args: &[&str]) -> String {
        let lab = self.lab();
        let path = self.program.path();
        let text = run(args, |end, args| {
            let mut argv = vec![path.to_str().expect("UTF-8")];
            argv.extend(args);
            lab.program(HOSTS[end], &argv)
        });
        assert!(!text.is_empty(), "nothing printed on the emulated hosts:\n{}", self.site.logs());
        text
    }
}

/// Runs the server's role at end 1 unless all is over loopback, then the client's at end 0: what it prints.
fn run(args: &[&str], command: impl Fn(usize, &[&str]) -> Command) -> String {
    let alone = args.starts_with(&["random", "loop"]);
    let server = (!alone).then(|| Running::start(command(1, &["server"])));
    if let Some(server) = &server {
        server.wait_ready();
    }
    Running::start(command(0, args)).output()
}

/// A process that ends with this.
struct Running(std::cell::RefCell<Child>);

impl Running {
    fn start(mut command: Command) -> Self {
        let child = command.stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn();
        Self(child.unwrap_or_else(|e| panic!("{command:?}: {e}")).into())
    }

    fn wait_ready(&self) {
        let mut child = self.0.borrow_mut();
        let mut lines = BufReader::new(child.stdout.as_mut().expect("piped")).lines();
        let first = lines.next().expect("the server says something").expect("UTF-8");
        assert_eq!(first, "ready");
    }

    fn output(&self) -> String {
        let mut stdout = self.0.borrow_mut().stdout.take().expect("piped");
        let reader = std::thread::spawn(move || {
            let mut text = Vec::new();
            stdout.read_to_end(&mut text).map(|_| String::from_utf8_lossy(&text).into_owned())
        });
        let deadline = Instant::now() + LIMIT;
        while !reader.is_finished() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        self.end();
        reader.join().expect("the reader").expect("output")
    }

    fn end(&self) {
        let mut child = self.0.borrow_mut();
        let _ = child.kill();
        let _ = child.wait();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.end();
    }
}
