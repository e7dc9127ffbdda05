//! What another user runs is put where that user may enter; what it was made from stays as it was.

use ringlab_tests::{fresh_dir, reach::Reachable};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

/// What `program` prints as another user; `None`: it cannot be run.
fn as_other_user(program: &Path) -> Option<String> {
    let mut command = Command::new(program);
    if rustix::process::geteuid().is_root() {
        command.uid(54321).gid(54321);
    }
    command.current_dir("/").output().ok().map(|out| String::from_utf8_lossy(&out.stdout).into_owned())
}

#[test]
fn programs_in_a_folder_of_roots_own_run_for_other_users() {
    let closed = fresh_dir("ringlab-files-");
    std::fs::set_permissions(&closed, PermissionsExt::from_mode(0o700)).expect("ours");
    for (name, mode) in [("open", 0o755), ("private", 0o700)] {
        std::fs::write(closed.join(name), "#!/bin/sh\necho runs\n").expect("written");
        std::fs::set_permissions(closed.join(name), PermissionsExt::from_mode(mode)).expect("ours");
    }
    let inode = |path: &Path| std::fs::metadata(path).expect("there").ino();
    let place = Reachable::with(&closed, &["open", "private"]);
    for (name, mode) in [("open", 0o755), ("private", 0o700)] {
        assert_eq!(as_other_user(&place.dir.join(name)).as_deref(), Some("runs\n"), "{name}");
        assert_eq!(std::fs::metadata(closed.join(name)).expect("there").mode() & 0o777, mode, "{name} is as it was");
        if rustix::process::geteuid().is_root() {
            assert_eq!(as_other_user(&closed.join(name)), None, "{name}");
        }
    }
    // No second copy of hundreds of megabytes where one file can have two names.
    assert_eq!(inode(&place.dir.join("open")), inode(&closed.join("open")));
    let made = place.dir.clone();
    drop(place);
    assert!(!made.exists() && closed.join("open").exists());
    // Where everybody may enter nothing is made.
    std::fs::set_permissions(&closed, PermissionsExt::from_mode(0o755)).expect("ours");
    let place = Reachable::with(&closed, &["open"]);
    assert_eq!(place.dir, closed.canonicalize().expect("there"));
    drop(place);
    assert!(closed.join("open").exists());
    std::fs::remove_dir_all(closed).expect("ours");
}
