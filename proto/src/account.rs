//! Users as programs are started: `name`, `uid`, `name:group`, `uid:gid`, looked up in a root's own
//! `/etc/passwd` and `/etc/group`.

use std::str::FromStr;

/// What a `user` says, not looked up yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserSpec {
    user: String,
    group: Option<String>,
}

/// Whom a program runs as.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Account {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Further groups.
    pub groups: Vec<u32>,
    /// Login name; empty if the number has none.
    pub name: String,
    /// Home directory; `/` if the number has none.
    pub home: String,
}

/// Why there is no such account.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AccountError {
    /// The text is none.
    #[error("`{0}` is neither a user's name nor a number, alone or with a group")]
    Syntax(String),
    /// Not in `/etc/passwd`.
    #[error("there is no user `{0}`")]
    NoUser(String),
    /// Not in `/etc/group`.
    #[error("there is no group `{0}`")]
    NoGroup(String),
}

impl FromStr for UserSpec {
    type Err = AccountError;

    fn from_str(text: &str) -> Result<Self, AccountError> {
        let (user, group) = match text.split_once(':') {
            Some((user, group)) => (user, Some(group)),
            None => (text, None),
        };
        let name = |s: &str| !s.is_empty() && !s.starts_with('-') && s.chars().all(|c| c.is_ascii_alphanumeric() || "._-$".contains(c));
        let known = |s: &str| match s.bytes().all(|b| b.is_ascii_digit()) {
            // The largest number means "none".
            true => s.parse::<u32>().is_ok_and(|n| n != u32::MAX),
            false => name(s),
        };
        if !known(user) || group.is_some_and(|g| !known(g)) {
            return Err(AccountError::Syntax(text.to_owned()));
        }
        Ok(Self { user: user.to_owned(), group: group.map(str::to_owned) })
    }
}

impl UserSpec {
    /// Looks the user up. A number that `passwd` does not have is its own group.
    ///
    /// # Errors
    /// [`AccountError::NoUser`], [`AccountError::NoGroup`] for a name that is not there.
    pub fn resolve(&self, passwd: &str, group: &str) -> Result<Account, AccountError> {
        let number: Option<u32> = self.user.parse().ok();
        let entry = passwd.lines().map(|l| l.split(':').collect::<Vec<_>>()).find(|f| match number {
            Some(n) => f.len() >= 6 && f[2].parse() == Ok(n),
            None => f.len() >= 6 && f[0] == self.user,
        });
        let mut account = match (entry, number) {
            (Some(f), _) => Account {
                uid: f[2].parse().map_err(|_| AccountError::NoUser(self.user.clone()))?,
                gid: f[3].parse().map_err(|_| AccountError::NoUser(self.user.clone()))?,
                groups: Vec::new(),
                name: f[0].to_owned(),
                home: f[5].to_owned(),
            },
            (None, Some(uid)) => Account { uid, gid: uid, home: "/".into(), ..Account::default() },
            (None, None) => return Err(AccountError::NoUser(self.user.clone())),
        };
        let groups = || group.lines().map(|l| l.split(':').collect::<Vec<_>>()).filter(|f| f.len() >= 4);
        if let Some(wanted) = &self.group {
            account.gid = match wanted.parse() {
                Ok(gid) => gid,
                Err(_) => {
                    let found = groups().find(|f| f[0] == wanted).and_then(|f| f[2].parse().ok());
                    found.ok_or_else(|| AccountError::NoGroup(wanted.clone()))?
                }
            };
        }
        if !account.name.is_empty() {
            let member = groups().filter(|f| f[3].split(',').any(|m| m == account.name));
            account.groups = member.filter_map(|f| f[2].parse().ok()).collect();
        }
        if !account.groups.contains(&account.gid) {
            account.groups.insert(0, account.gid);
        }
        Ok(account)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/bash\nweb:x:33:44:w:/srv/www:/bin/sh\nbroken:x\n";
    const GROUP: &str = "root:x:0:\nstaff:x:50:root,web\nwww:x:44:\nlog:x:7:web\n";

    fn of(text: &str) -> Result<(u32, u32, Vec<u32>, String), AccountError> {
        let a = text.parse::<UserSpec>()?.resolve(PASSWD, GROUP)?;
        Ok((a.uid, a.gid, a.groups, a.home))
    }

    #[test]
    fn names_and_numbers_are_looked_up() {
        assert_eq!(of("web"), Ok((33, 44, vec![44, 50, 7], "/srv/www".into())));
        assert_eq!(of("33"), of("web"));
        assert_eq!(of("web:staff"), Ok((33, 50, vec![50, 7], "/srv/www".into())));
        assert_eq!(of("1000"), Ok((1000, 1000, vec![1000], "/".into())));
        assert_eq!(of("1000:5"), Ok((1000, 5, vec![5], "/".into())));
        assert_eq!(of("nobody"), Err(AccountError::NoUser("nobody".into())));
        assert_eq!(of("broken"), Err(AccountError::NoUser("broken".into())));
        assert_eq!(of("web:nogroup"), Err(AccountError::NoGroup("nogroup".into())));
    }

    #[test]
    fn what_cannot_be_a_user_is_refused() {
        for text in ["", ":", "web:", ":web", "a b", "4294967295", "99999999999", "-x", "a/b", "a:b:c"] {
            assert_eq!(text.parse::<UserSpec>(), Err(AccountError::Syntax(text.into())), "{text}");
        }
    }
}
