//! A root, binds, environment, directory and user of a node's own, as root and as an ordinary user made for the test.

use crate::guest_profile::under_a_containers_profile;
use crate::{TWO_HOSTS, expect_clean, in_site, in_site_for_others};
use ringlab_tests::lab::{Site, started_by};
use ringlab_tests::leftovers::Snapshot;
use std::path::Path;
use std::process::{Command, Output};

/// Whoever runs the lab: root, or an ordinary user.
#[derive(Clone, Copy, PartialEq, Eq)]
enum As {
    Root,
    Ordinary,
}

/// Number of an ordinary user that owns nothing but the test's directory.
const ORDINARY: u32 = 54321;

fn text(octets: &[u8]) -> String {
    String::from_utf8_lossy(octets).into_owned()
}

impl As {
    /// Runs a test for both, where this process may choose.
    fn each(test: impl Fn(&Site, As)) {
        let clean = |site: &Site, who: As| {
            test(site, who);
            who.ok(site, &["destroy", "--all"]);
            remove_files(site);
        };
        if rustix::process::geteuid().is_root() {
            in_site_for_others(|site| clean(site, As::Root));
        }
        in_site_for_others(|site| clean(site, As::Ordinary));
    }

    fn labctl(self, site: &Site, args: &[&str]) -> Command {
        let labctl = site.labctl(args);
        if self == As::Root || !rustix::process::geteuid().is_root() {
            return labctl;
        }
        let mut command = Command::new("setpriv");
        let id = format!("{ORDINARY}");
        command.args(["--reuid", &id, "--regid", &id, "--clear-groups", "--inh-caps=-all", "--bounding-set=-all"]);
        command.env("HOME", "/");
        started_by(command, &labctl)
    }

    fn run(self, site: &Site, args: &[&str]) -> Output {
        self.labctl(site, args).output().expect("starts")
    }

    fn ok(self, site: &Site, args: &[&str]) -> String {
        let out = self.run(site, args);
        assert!(out.status.success(), "{args:?}: {}\n{}", text(&out.stderr), site.logs());
        text(&out.stdout)
    }

    /// Runs a shell command on node `a`.
    fn sh(self, site: &Site, options: &[&str], script: &str) -> String {
        self.ok(site, &[&["exec"][..], options, &["a", "--", "sh", "-ec", script]].concat())
    }

    /// Gives what the test has made to whoever runs the lab.
    fn own(self, path: &Path) {
        if self == As::Ordinary && rustix::process::geteuid().is_root() {
            let id = format!("{ORDINARY}:{ORDINARY}");
            assert!(Command::new("chown").args(["-Rh", &id]).arg(path).status().expect("starts").success());
        }
    }

    fn user(self) -> u32 {
        if self == As::Ordinary && rustix::process::geteuid().is_root() { ORDINARY } else { rustix::process::geteuid().as_raw() }
    }
}

/// Removes what the tests below have made.
fn remove_files(site: &Site) {
    for name in ["root", "share", "conf"].map(|name| site.dir.join(name)).iter().filter(|path| path.exists()) {
        std::fs::remove_dir_all(name).expect("removed");
    }
    for name in ["motd", "hosts"].map(|name| site.dir.join(name)).iter().filter(|path| path.exists()) {
        std::fs::remove_file(name).expect("removed");
    }
}

/// A root of links to what is bound into it, and two names.
fn make_root(site: &Site) {
    let root = site.dir.join("root");
    for dir in ["etc", "tmp", "srv"] {
        std::fs::create_dir_all(root.join(dir)).expect("a fresh directory");
    }
    for name in ["bin", "sbin", "lib", "lib64"] {
        std::os::unix::fs::symlink(format!("usr/{name}"), root.join(name)).expect("linked");
    }
    // A link to an absolute path leads within the root.
    std::os::unix::fs::symlink("/srv", root.join("data")).expect("linked");
    std::fs::write(root.join("etc/passwd"), "root:x:0:0::/:/bin/sh\nweb:x:4711:4712::/srv:/bin/sh\n").expect("written");
    std::fs::write(root.join("etc/group"), "root:x:0:\nwww:x:4712:\nlog:x:4713:web\n").expect("written");
    std::fs::create_dir(site.dir.join("share")).expect("a fresh directory");
    std::fs::write(site.dir.join("motd"), "bound\n").expect("written");
}

/// Host `a` with more fields.
fn with_fields(fields: &str) -> String {
    TWO_HOSTS.replace("  a: {}\n", &format!("  a:\n    {}\n", fields.replace('\n', "\n    ")))
}

const FIELDS: &str = "root: root
binds: [\"/usr:/usr:ro\", \"./share:/data/share\", \"motd:/etc/motd:ro\"]
env: {NODE: from-node, BOTH: from-node}
workdir: /srv
run:
  - cmd: [sh, -c, \"echo $NODE $BOTH $PWD > /srv/share/ran; exec sleep 1000\"]
    env: {BOTH: from-run}";

#[test]
fn a_node_has_its_own_root_binds_environment_and_directory() {
    As::each(|site, who| {
        make_root(site);
        let file = site.file("files.yaml", &with_fields(FIELDS));
        who.own(&site.dir);
        who.ok(site, &["deploy", &file]);
        assert_eq!(who.sh(site, &[], "ls /"), "bin\ndata\ndev\netc\nlib\nlib64\nproc\nsbin\nsrv\nsys\ntmp\nusr\n");
        assert_eq!(who.sh(site, &[], "pwd; cat /etc/motd; echo $NODE $BOTH"), "/srv\nbound\nfrom-node from-node\n");
        let asked = who.sh(site, &["-e", "BOTH=asked", "-e", "NOT_HERE", "-w", "/tmp"], "pwd; echo $NODE $BOTH ${NOT_HERE-unset}");
        assert_eq!(asked, "/tmp\nfrom-node asked unset\n");
        assert_eq!(who.sh(site, &[], "until [ -s share/ran ]; do sleep 0.05; done; cat share/ran"), "from-node from-run /srv\n");
        assert_eq!(
            who.sh(site, &[], "touch /usr/x /etc/motd 2>&1 || true; : > /dev/null; echo mine > share/file").matches("Read-only").count(),
            2
        );
        assert_eq!(std::fs::read_to_string(site.dir.join("share/file")).expect("written"), "mine\n");
        // The host is the same as ever.
        assert_eq!(who.sh(site, &[], "uname -n; curl -sS --max-time 20 http://b/"), "a\nhello");
        assert!(who.sh(site, &[], "cat /etc/hosts").contains("10.0.0.2\tb"));
        // Programs see each other as on one machine, with their own files only.
        let namespace = || who.sh(site, &[], "readlink /proc/self/ns/mnt; grep -c . /proc/self/mountinfo > /dev/null");
        assert_eq!(namespace(), namespace());
        assert_eq!(who.sh(site, &[], "grep -l from-run /proc/[0-9]*/environ 2>/dev/null | wc -l").trim(), "1");
        let missing = who.run(site, &["exec", "a", "--", "/root/x"]);
        assert_eq!(missing.status.code(), Some(127), "{}", text(&missing.stderr));
        let nowhere = who.run(site, &["exec", "-w", "/nowhere", "a", "--", "ls"]);
        assert!(text(&nowhere.stderr).contains("/nowhere: No such file"), "{}", text(&nowhere.stderr));
        // A changed field restarts the host.
        std::fs::write(&file, with_fields(&FIELDS.replace("NODE: from-node", "NODE: other"))).expect("written");
        assert!(who.ok(site, &["deploy", &file]).contains("~ node a: restarts (files)"));
        assert_eq!(who.sh(site, &[], "echo $NODE"), "other\n");
        // A directory that has gone does not keep a lab up.
        std::fs::remove_dir_all(site.dir.join("share")).expect("removed");
        assert_eq!(who.run(site, &["validate", &file]).status.code(), Some(2));
        who.ok(site, &["destroy", &file]);
    });
}

#[test]
fn binds_work_without_a_root() {
    As::each(|site, who| {
        std::fs::write(site.dir.join("hosts"), "10.0.0.2 other\n").expect("written");
        std::fs::create_dir(site.dir.join("conf")).expect("a fresh directory");
        std::fs::write(site.dir.join("conf/x"), "x\n").expect("written");
        let file = site.file("binds.yaml", &with_fields("binds: [\"hosts:/etc/hosts\", \"conf:/mnt:ro\"]"));
        who.own(&site.dir);
        who.ok(site, &["deploy", &file]);
        assert_eq!(who.sh(site, &[], "cat /mnt/x /etc/hosts; ls -d /root"), "x\n10.0.0.2 other\n/root\n");
        assert_eq!(who.sh(site, &[], "curl -sS --max-time 20 http://other/"), "hello");
        assert!(!Path::new("/mnt/x").exists(), "the machine's own files stay");
    });
}

#[test]
fn programs_run_as_another_user() {
    As::each(|site, who| {
        make_root(site);
        let fields = "root: root\nbinds: [\"/usr:/usr:ro\", \"share:/srv\"]\nuser: web";
        let file = site.file("user.yaml", &with_fields(fields));
        who.own(&site.dir);
        if who == As::Root {
            let given = Command::new("chown").arg("4711").arg(site.dir.join("share")).status().expect("starts");
            assert!(given.success());
        }
        who.ok(site, &["deploy", &file]);
        assert_eq!(who.sh(site, &[], "id -u; id -g; echo $HOME $USER; cd; pwd"), "4711\n4712\n/srv web\n/srv\n");
        assert_eq!(who.sh(site, &["-u", "0"], "id -u; echo $HOME"), "0\n/\n");
        assert_eq!(who.sh(site, &["--user", "5000:5001"], "id -u; id -g"), "5000\n5001\n");
        // Its calls are served, whoever it is, also after it has forked.
        assert_eq!(who.sh(site, &[], "curl -sS --max-time 20 http://b/; (exec curl -sS --max-time 20 http://b/)"), "hellohello");
        who.sh(site, &[], "touch /srv/made");
        use std::os::unix::fs::MetadataExt;
        let owner = std::fs::metadata(site.dir.join("share/made")).expect("made").uid();
        assert_eq!(owner, if who == As::Root { 4711 } else { who.user() }, "as who runs the lab, where there is no privilege");
        if who == As::Root {
            assert_eq!(who.sh(site, &[], "id -G"), "4712 4713\n");
            assert_eq!(who.run(site, &["exec", "a", "--", "sh", "-c", ": > /etc/passwd"]).status.code(), Some(2));
        }
        let unknown = who.run(site, &["exec", "-u", "nobody-here", "a", "--", "id"]);
        assert_eq!(unknown.status.code(), Some(126), "{}", text(&unknown.stderr));
        assert!(text(&unknown.stderr).contains("there is no user `nobody-here`"), "{}", text(&unknown.stderr));
    });
}

#[test]
fn what_the_file_names_must_be_there() {
    let site = Site::new();
    let before = Snapshot::of(&site.dir);
    std::fs::create_dir(site.dir.join("root")).expect("a fresh directory");
    let cases = [
        ("root: nothing", "4:11", "there is no directory"),
        ("root: root\nbinds: [\"nothing:/x\"]", "5:13", "there is no "),
        ("binds: [\"root:/no/such/place\"]", "4:13", "this machine has no /no/such/place"),
        ("root: root\nworkdir: /x", "5:14", "there is no directory /x in"),
        ("root: root\nuser: web", "5:11", "there is no user `web` in"),
        ("binds: [\"root:/etc:r\"]", "4:13", "`r` is not an option of a bind"),
        ("workdir: x", "4:14", "`x` is not an absolute path"),
    ];
    for (fields, place, what) in cases {
        let file = site.file("lab.yaml", &with_fields(fields));
        for verb in ["validate", "deploy"] {
            let out = site.run(&[verb, &file]);
            let error = text(&out.stderr);
            assert_eq!(out.status.code(), Some(2), "{verb} {fields}: {error}");
            assert!(error.contains(&format!("lab.yaml:{place}")) && error.contains(what), "{verb} {fields}: {error}");
        }
    }
    std::fs::remove_dir(site.dir.join("root")).expect("empty");
    expect_clean(&site.dir, &before);
}

#[test]
fn a_machine_that_refuses_mounts_is_named_before_anything_is_made() {
    in_site(|site| {
        std::fs::create_dir(site.dir.join("root")).expect("a fresh directory");
        let own = rustix::process::geteuid().as_raw();
        for fields in ["root: root", "binds: [\"root:/mnt\"]"] {
            let file = site.file("lab.yaml", &with_fields(fields));
            let out = under_a_containers_profile(&site.labctl(&["deploy", &file])).output().expect("starts");
            let error = text(&out.stderr);
            assert_eq!(out.status.code(), Some(3), "{error}");
            assert!(error.contains("node a has a `root` or `binds`") && error.contains("mend it with"), "{error}");
            assert!(text(&site.run(&["list"]).stdout).lines().count() <= 1, "nothing is up");
        }
        assert_eq!(std::fs::read_dir(site.dir.join("root")).expect("there").count(), 0, "nothing was made");
        let out = under_a_containers_profile(&site.labctl(&["doctor"])).output().expect("starts");
        let shown = text(&out.stdout);
        assert!(shown.contains("limited  files") && shown.contains("security-opt seccomp=unconfined"), "{shown}");
        // Directory, environment and one's own user need nothing of the machine.
        let file = site.file("lab.yaml", &with_fields(&format!("env: {{A: b}}\nworkdir: /usr\nuser: \"{own}\"")));
        let run = |args: &[&str]| {
            let out = under_a_containers_profile(&site.labctl(args)).output().expect("starts");
            assert!(out.status.success(), "{args:?}: {}", text(&out.stderr));
            text(&out.stdout)
        };
        run(&["deploy", &file]);
        assert_eq!(run(&["exec", "a", "--", "sh", "-c", "echo $A $PWD; id -u"]), format!("b /usr\n{own}\n"));
        run(&["destroy", "--all"]);
        remove_files(site);
    });
}
