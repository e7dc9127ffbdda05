//! What a killed test leaves is removed by the next run; what a running one has is not.

use crate::TWO_HOSTS;
use ringlab_tests::bin;
use ringlab_tests::leftovers::Snapshot;
use ringlab_tests::reach::temporary;
use ringlab_tests::stale::{NAMESPACE, SITE, sweep};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// Makes what a test makes, under its own number; then waits for its standard input to end, or is killed.
const TEST: &str = r#"
dir=$TMP/$SITE$$-0; mkdir "$dir"; RINGLAB_DIR=$dir; export RINGLAB_DIR
printf '%s' "$TOPOLOGY" > "$dir/two.yaml"; "$LABCTL" deploy "$dir/two.yaml" >&2
ln -s / "$TMP/$SITE$$-1"
if test "$(id -u)" = 0; then
  ip netns add "$NAMESPACE$$-0a"
  ip netns exec "$NAMESPACE$$-0a" sleep 10000 < /dev/null > /dev/null 2>&1 &
fi
echo ready; read end
"#;

/// A test process like those of this suite.
struct Test {
    child: Child,
    dir: PathBuf,
    link: PathBuf,
    namespace: PathBuf,
}

impl Test {
    fn start() -> Self {
        let tmp = temporary();
        let mut sh = Command::new("sh");
        sh.args(["-ec", TEST]).stdin(Stdio::piped()).stdout(Stdio::piped()).env("NO_COLOR", "1");
        sh.env("TMP", &tmp).env("SITE", SITE).env("NAMESPACE", NAMESPACE).env("TOPOLOGY", TWO_HOSTS).env("LABCTL", bin("labctl"));
        let mut child = sh.spawn().expect("starts");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("a pipe")).read_line(&mut line).expect("text");
        assert_eq!(line, "ready\n");
        let name = |prefix: &str, rest: &str| format!("{prefix}{}-{rest}", child.id());
        let (dir, link) = (tmp.join(name(SITE, "0")), tmp.join(name(SITE, "1")));
        let namespace = Path::new("/run/netns").join(name(NAMESPACE, "0a"));
        Self { child, dir, link, namespace }
    }

    fn processes(&self) -> usize {
        Snapshot::of(&self.dir).processes.len()
    }

    fn kill(&mut self) {
        self.child.kill().expect("it runs");
        self.child.wait().expect("it was killed");
    }
}

#[test]
fn a_killed_test_is_cleaned_up_after_and_a_running_one_is_left_alone() {
    let root = rustix::process::geteuid().is_root();
    let (mut killed, mut runs) = (Test::start(), Test::start());
    killed.kill();
    assert!(killed.processes() >= 5, "the agent and its daemons outlive the test");
    let before = Snapshot::of(&runs.dir);
    sweep();
    assert!(!killed.dir.exists() && !killed.namespace.exists());
    assert_eq!(Snapshot::of(&killed.dir).processes, [].into());
    let after = Snapshot::of(&runs.dir);
    assert_eq!((after.processes, after.files, after.mounts), (before.processes, before.files, before.mounts));
    assert_eq!(runs.namespace.exists(), root);
    // Not what somebody else put there under such a name.
    assert!(killed.link.is_symlink());
    runs.kill();
    sweep();
    assert!(!runs.dir.exists() && !runs.namespace.exists() && runs.processes() == 0);
    for link in [killed.link, runs.link] {
        std::fs::remove_file(link).expect("the test's own");
    }
}
