//! Debian's OpenSSH on two emulated hosts: commands, terminals, files, forwarded ports, agents.

use crate::guest_servers::{Files, path, sh};
use crate::in_site;
use ringlab_tests::lab::Lab;
use std::process::Command;

/// Keys and settings of one user for both ends.
struct Keys(Files);

impl Keys {
    fn new() -> Self {
        let keys = Self(Files::new());
        for name in ["host", "user"] {
            let made = Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f", &keys.at(name)]).status();
            assert!(made.expect("openssh-client is installed").success());
        }
        let dir = keys.0.0.display();
        // What it separates itself to must be there, whoever it runs as.
        std::fs::create_dir_all(keys.0.0.join("run/sshd")).expect("a fresh directory");
        keys.0.write(
            "sshd_config",
            format!(
                "HostKey {dir}/host\nPidFile {dir}/pid\nAuthorizedKeysFile {dir}/user.pub\nStrictModes no\nUsePAM no\n\
                 PasswordAuthentication no\nSubsystem sftp internal-sftp\n"
            ),
        );
        keys.0.write(
            "ssh_config",
            format!(
                "Host *\n  IdentityFile {dir}/user\n  IdentitiesOnly yes\n  UserKnownHostsFile {dir}/known\n  StrictHostKeyChecking accept-new\n  \
                 LogLevel ERROR\n  BatchMode yes\n"
            ),
        );
        keys
    }

    fn at(&self, name: &str) -> String {
        path(&self.0.0.join(name)).to_owned()
    }

    /// The start of a client's command line.
    fn client(&self, program: &str, port: &str) -> String {
        let option = if program == "ssh" { "-p" } else { "-P" };
        format!("{program} -F {} {option} {port}", self.at("ssh_config"))
    }

    /// `b` runs the server; `options` are further fields of the node.
    fn topology(&self, port: u16, options: &str) -> String {
        let (config, run) = (self.at("sshd_config"), self.at("run"));
        format!(
            "name: ssh\nnodes:\n  a: {{}}\n  b:\n    binds: [\"{run}:/run\"]\n{options}    run:\n      - {{cmd: [/usr/sbin/sshd, -D, -e, -f, {config}, -p, \"{port}\"], ready: {{tcp: {port}}}}}\n\
             links:\n  - endpoints: [\"a:eth0\", \"b:eth0\"]\n    ipv4: [10.0.0.1/24, 10.0.0.2/24]\n"
        )
    }
}

fn with_server(test: impl FnOnce(&Lab<'_>, &Keys)) {
    let keys = Keys::new();
    in_site(|site| test(&site.deploy(&keys.topology(22, "")), &keys));
}

#[test]
fn ssh_gives_a_command_and_a_terminal() {
    with_server(|lab, keys| {
        let ssh = keys.client("ssh", "22");
        assert_eq!(sh(lab, "a", &format!("{ssh} b 'uname -n; cat; exit 5' </etc/hostname || echo $?")), "b\na\n5\n");
        let from = sh(lab, "a", &format!("{ssh} b 'set -- $SSH_CONNECTION; echo $1 $3 $4' </dev/null"));
        assert_eq!(from, "10.0.0.1 10.0.0.2 22\n");
        // `script` gives the client a terminal of its own, and its size.
        let text = sh(lab, "a", &format!("script -qec \"stty rows 33 cols 99; {ssh} -t b 'tty; stty size'\" /dev/null </dev/null"));
        assert!(text.contains("/dev/pts/") && text.contains("33 99"), "{text}");
        // Many at once, one after the other over one connection.
        let many = format!("for i in 1 2 3 4 5; do {ssh} b \"echo $i\" </dev/null & done; wait");
        let mut lines: Vec<String> = sh(lab, "a", &many).lines().map(str::to_owned).collect();
        lines.sort();
        assert_eq!(lines, ["1", "2", "3", "4", "5"]);
        let master = format!("{ssh} -S {}", keys.at("master"));
        let text = sh(lab, "a", &format!("{master} -M -f -N b; {master} b hostname; {master} b hostname; {master} -O exit b 2>&1"));
        assert_eq!(text.replace('\r', ""), "b\nb\nExit request sent.\n");
    });
}

#[test]
fn scp_and_sftp_carry_files() {
    with_server(|lab, keys| {
        let octets: Vec<u8> = (0..3_000_001u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        keys.0.write("big", octets);
        let (big, copy, scp) = (keys.at("big"), keys.at("copy"), keys.client("scp", "22"));
        for options in ["", "-O"] {
            sh(lab, "a", &format!("{scp} -q {options} {big} b:{copy}; cmp {big} {copy}; rm {copy}"));
            sh(lab, "a", &format!("{scp} -q {options} b:{big} {copy}; cmp {big} {copy}; rm {copy}"));
        }
        let sftp = keys.client("sftp", "22");
        let text = sh(lab, "a", &format!("printf 'ls -1 {big}\\nget {big} {copy}\\n' | {sftp} -q -b - b; cmp {big} {copy}"));
        assert!(text.contains(&format!("\n{big}\n")), "{text}");
    });
}

#[test]
fn ssh_forwards_ports_and_agents() {
    with_server(|lab, keys| {
        let ssh = keys.client("ssh", "22");
        // The server's own greeting, by a port of this host, and by the standard streams.
        let local = format!(
            "{ssh} -N -L 127.0.0.1:9000:127.0.0.1:22 b & p=$!
             until (exec 3<>/dev/tcp/127.0.0.1/9000) 2>/dev/null; do kill -0 $p; sleep 0.05; done
             exec 3<>/dev/tcp/127.0.0.1/9000; head -c 8 <&3; kill $p"
        );
        assert_eq!(lab.ok(lab.program("a", &["bash", "-ec", &local])), "SSH-2.0-");
        assert_eq!(sh(lab, "a", &format!("{ssh} -W 127.0.0.1:22 b </dev/null | head -c 8")), "SSH-2.0-");
        // By a port of the other host, back to a server here.
        let text = sh(
            lab,
            "a",
            &format!(
                "busybox httpd -f -p 127.0.0.1:8000 -h {} & p=$!
                 until busybox wget -q -O /dev/null http://127.0.0.1:8000/page; do kill -0 $p; sleep 0.05; done 2>/dev/null
                 {ssh} -R 127.0.0.1:9001:127.0.0.1:8000 b 'busybox wget -q -O- http://127.0.0.1:9001/page' </dev/null; kill $p",
                page(keys)
            ),
        );
        assert_eq!(text, "page\n");
        let agent = format!(
            "eval $(ssh-agent -s) >/dev/null; ssh-add -q {}; {ssh} -A b 'ssh-add -L' </dev/null; ssh-agent -k >/dev/null",
            keys.at("user")
        );
        let public = std::fs::read_to_string(keys.at("user.pub")).expect("there");
        assert_eq!(sh(lab, "a", &agent), public);
    });
}

/// A folder with a file `page`.
fn page(keys: &Keys) -> String {
    keys.0.write("html/page", "page\n");
    keys.at("html")
}

#[test]
fn sshd_runs_as_an_ordinary_user() {
    let keys = Keys::new();
    let users = keys.0.write("passwd", "root:x:0:0::/root:/bin/sh\nlab:x:4321:4321::/tmp:/bin/sh\n");
    let readable = Command::new("chmod").args(["-R", "go=rX", path(&keys.0.0)]).status().expect("chmod");
    let owned = Command::new("chown").args(["4321:4321", &keys.at("host")]).status().expect("chown");
    let secret = Command::new("chmod").args(["600", &keys.at("host"), &keys.at("user")]).status().expect("chmod");
    assert!(readable.success() && owned.success() && secret.success());
    in_site(|site| {
        let lab = site.deploy(
            &keys.topology(2222, "    user: \"4321:4321\"\n").replace("binds: [", &format!("binds: [\"{}:/etc/passwd\", ", path(&users))),
        );
        let ssh = keys.client("ssh", "2222");
        assert_eq!(sh(&lab, "a", &format!("{ssh} lab@b 'id -un; uname -n' </dev/null")), "lab\nb\n");
    });
}
