//! Where a program of a host runs: its root and binds, directory, environment, user.
//!
//! What the topology says of the node and what whoever starts a program asks for come together here. Without a root, binds
//! or another user there is nothing to arrange: the program sees the machine's files as the user of hostd.

use super::launch::{Children, Refusal, Start};
use super::namespace::{self, Namespaces, View, may_change_user, may_mount};
use crate::config::FilesSpec;
use ringlab_proto::account::{Account, UserSpec};
use ringlab_proto::topology::read_in;
use rustix::process::{getegid, geteuid};
use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;
use tokio::sync::Mutex;

/// Where and as whom a program starts.
#[derive(Debug, Default)]
pub struct Place {
    /// Entered before anything else.
    pub namespaces: Option<Arc<Namespaces>>,
    /// Users change to it; `None`: nobody changes.
    pub account: Option<Account>,
    /// Directory.
    pub cwd: String,
    /// Environment, all of it.
    pub env: BTreeMap<String, String>,
}

/// The places of a host.
pub struct Places {
    files: FilesSpec,
    made: Mutex<Made>,
}

/// By the user and group that programs see themselves as.
type Made = BTreeMap<Option<(u32, u32)>, Arc<Namespaces>>;

/// How a program gets its user.
#[derive(Debug, PartialEq, Eq)]
enum Become {
    /// It has it.
    Nothing,
    /// It changes to it.
    Change,
    /// It is known by it in a user namespace.
    Map(u32, u32),
}

impl Places {
    /// Of a host with these files.
    pub fn new(files: FilesSpec) -> Self {
        Self { files, made: Mutex::default() }
    }

    /// Makes what all programs need: so that a host that cannot have it does not come up.
    ///
    /// # Errors
    /// [`Refusal`].
    pub async fn prepare(&self, children: &Children) -> Result<(), Refusal> {
        if self.files.is_plain() {
            return Ok(());
        }
        self.place(children, &Start::default()).await.map(drop)
    }

    /// Where a program starts.
    ///
    /// # Errors
    /// [`Refusal`], if there is no such user, or the machine refuses namespaces.
    pub async fn place(&self, children: &Children, start: &Start) -> Result<Place, Refusal> {
        let files = &self.files;
        let user = if start.user.is_empty() { &files.user } else { &start.user };
        let account = if user.is_empty() { None } else { Some(self.account(user)?) };
        let how = account.as_ref().map_or(Ok(Become::Nothing), |a| become_account(a).map_err(|error| refusal("user", user, error)))?;
        let view = self.view(&how);
        let namespaces = match view {
            Some(view) => Some(self.namespaces(children, view).await?),
            None => None,
        };
        let env = self.environment(start, account.as_ref());
        let cwd = [&start.workdir, &files.workdir].into_iter().find(|dir| !dir.is_empty());
        let cwd = cwd.cloned().unwrap_or_else(|| if files.root.is_empty() { start.cwd.clone() } else { "/".to_owned() });
        Ok(Place { namespaces, account: account.filter(|_| how == Become::Change), cwd, env })
    }

    /// What has to be arranged; `None`: nothing.
    fn view(&self, how: &Become) -> Option<View> {
        let own = || (geteuid().as_raw(), getegid().as_raw());
        let map = match *how {
            Become::Map(uid, gid) => Some((uid, gid)),
            Become::Nothing if self.files.has_view() && !may_mount() => Some(own()),
            Become::Nothing | Become::Change => None,
        };
        (map.is_some() || self.files.has_view()).then(|| View { root: self.files.root.clone(), binds: self.files.binds.clone(), map })
    }

    async fn namespaces(&self, children: &Children, view: View) -> Result<Arc<Namespaces>, Refusal> {
        let mut made = self.made.lock().await;
        if let Some(there) = made.get(&view.map) {
            return Ok(there.clone());
        }
        let fresh = Arc::new(children.namespaces(&view).await?);
        made.insert(view.map, fresh.clone());
        Ok(fresh)
    }

    fn account(&self, user: &str) -> Result<Account, Refusal> {
        let root = if self.files.root.is_empty() { "/" } else { &self.files.root };
        // A root need not have them: numbers work without.
        let read = |file| read_in(Path::new(root), file).unwrap_or_default();
        let found = user.parse().and_then(|spec: UserSpec| spec.resolve(&read("/etc/passwd"), &read("/etc/group")));
        found.map_err(|error| refusal("user", user, io::Error::new(io::ErrorKind::InvalidInput, error)))
    }

    /// Who asks, then the node, then what is asked for; a user's own names go with the user.
    fn environment(&self, start: &Start, account: Option<&Account>) -> BTreeMap<String, String> {
        let mut env = start.env.clone();
        if let Some(account) = account {
            env.insert("HOME".into(), account.home.clone());
            for name in ["USER", "LOGNAME"] {
                match account.name.is_empty() {
                    true => drop(env.remove(name)),
                    false => drop(env.insert(name.into(), account.name.clone())),
                }
            }
        }
        env.extend(self.files.env.iter().chain(&start.set_env).map(|(k, v)| (k.clone(), v.clone())));
        env
    }
}

fn become_account(account: &Account) -> io::Result<Become> {
    let own = (geteuid().as_raw(), getegid().as_raw());
    if may_change_user() {
        return Ok(if own == (account.uid, account.gid) { Become::Nothing } else { Become::Change });
    }
    match own == (account.uid, account.gid) {
        true => Ok(Become::Nothing),
        false if own.0 == 0 => Err(io::Error::other("needs CAP_SETUID, CAP_SETGID and CAP_SYS_PTRACE")),
        false => Ok(Become::Map(account.uid, account.gid)),
    }
}

fn refusal(what: &str, which: &str, error: io::Error) -> Refusal {
    Refusal { what: format!("{what} {which}"), error }
}

impl From<namespace::Refused> for Refusal {
    fn from(refused: namespace::Refused) -> Self {
        Self { what: refused.what, error: refused.error }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[tokio::test]
    async fn what_is_asked_for_goes_over_the_node_and_that_over_whoever_asks() {
        let files = FilesSpec { env: env(&[("A", "node"), ("B", "node")]), workdir: "/srv".into(), ..Default::default() };
        let start = Start {
            env: env(&[("A", "caller"), ("C", "caller")]),
            set_env: env(&[("B", "asked")]),
            cwd: "/caller".into(),
            ..Default::default()
        };
        let place = Places::new(files.clone()).place(&Children::default(), &start).await.expect("nothing to arrange");
        assert_eq!(place.env, env(&[("A", "node"), ("B", "asked"), ("C", "caller")]));
        assert_eq!((place.cwd.as_str(), place.namespaces.is_none(), place.account.is_none()), ("/srv", true, true));
        let asked = Start { workdir: "/asked".into(), ..start.clone() };
        assert_eq!(Places::new(files).place(&Children::default(), &asked).await.expect("nothing").cwd, "/asked");
        assert_eq!(Places::new(FilesSpec::default()).place(&Children::default(), &start).await.expect("nothing").cwd, "/caller");
    }

    #[tokio::test]
    async fn own_number_is_nothing_to_become_and_brings_a_home() {
        let own = format!("{}:{}", geteuid().as_raw(), getegid().as_raw());
        let start = Start { user: own, env: env(&[("HOME", "/x")]), ..Default::default() };
        let place = Places::new(FilesSpec::default()).place(&Children::default(), &start).await.expect("nothing to arrange");
        assert!(place.namespaces.is_none() && place.account.is_none() && place.env["HOME"] != "/x");
        let nobody = Start { user: "no-such-user".into(), ..Default::default() };
        let refusal = Places::new(FilesSpec::default()).place(&Children::default(), &nobody).await.expect_err("unknown");
        assert!(refusal.error.to_string().contains("there is no user `no-such-user`"));
    }
}
