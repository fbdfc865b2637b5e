//! Names of users and groups, read from the machine's own files by hand: the C library's look-ups would
//! load the machine's code into the guest.

use std::{fs::OpenOptions, io::Read, os::unix::fs::OpenOptionsExt, path::Path};

use crate::error::{Error, Result};

/// More than any real passwd or group file.
const MAX_FILE: u64 = 1 << 20;

/// A line of `/etc/passwd`, with the groups that list the user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) name: String,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: Vec<u32>,
    pub(crate) home: String,
    /// Empty when the file names none.
    pub(crate) shell: String,
}

/// Both files, read once per request.
#[derive(Debug, Default)]
pub(crate) struct Names {
    passwd: String,
    group: String,
}

impl Names {
    pub(crate) fn read(etc: &Path) -> Self {
        let read = |name: &str| {
            let mut text = Vec::new();
            // Not blocking: it may be a pipe that nobody writes to.
            let file = OpenOptions::new()
                .read(true)
                .custom_flags(rustix::fs::OFlags::NONBLOCK.bits() as i32)
                .open(etc.join(name));
            if let Ok(file) = file {
                let _ = file.take(MAX_FILE).read_to_end(&mut text);
            }
            String::from_utf8_lossy(&text).into_owned()
        };
        Self {
            passwd: read("passwd"),
            group: read("group"),
        }
    }

    fn name_of(text: &str, id: u32) -> Option<&str> {
        text.lines().find_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            (fields.nth(1)?.parse() == Ok(id)).then_some(name)
        })
    }

    /// The user's name, or its number.
    pub(crate) fn user(&self, uid: u32) -> String {
        Self::shown(&self.passwd, uid)
    }

    /// The group's name, or its number.
    pub(crate) fn group(&self, gid: u32) -> String {
        Self::shown(&self.group, gid)
    }

    fn shown(text: &str, id: u32) -> String {
        match (Self::name_of(text, id), id) {
            (Some(name), _) => name.to_owned(),
            // Where there is no such file, as in a volume.
            (None, 0) => "root".to_owned(),
            (None, id) => id.to_string(),
        }
    }

    /// Looks a user up by name or number.
    pub(crate) fn find(&self, wanted: &str) -> Result<User> {
        self.passwd
            .lines()
            .find_map(|line| {
                let fields: Vec<&str> = line.split(':').collect();
                let [name, _, uid, gid, _, home, ref rest @ ..] = fields[..] else {
                    return None;
                };
                if name != wanted && uid != wanted {
                    return None;
                }
                let gid = gid.parse().ok()?;
                let mut groups: Vec<u32> = self.groups_of(name).collect();
                groups.push(gid);
                Some(User {
                    name: name.to_owned(),
                    uid: uid.parse().ok()?,
                    gid,
                    groups,
                    home: home.to_owned(),
                    shell: rest.first().copied().unwrap_or_default().trim().to_owned(),
                })
            })
            .ok_or_else(|| Error::invalid(format!("no user {wanted:?} in this machine")))
    }

    fn find_group(&self, wanted: &str) -> Result<u32> {
        let line = self.group.lines().find_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            let gid = fields.nth(1)?.parse().ok()?;
            (name == wanted).then_some(gid)
        });
        line.or_else(|| wanted.parse().ok())
            .ok_or_else(|| Error::invalid(format!("no group {wanted:?} in this machine")))
    }

    /// A user, with a group after a colon. A number need not be in the files.
    pub(crate) fn identity(&self, wanted: &str) -> Result<User> {
        let (name, group) = match wanted.split_once(':') {
            Some((name, group)) => (name, Some(group)),
            None => (wanted, None),
        };
        let name = if name.is_empty() { "0" } else { name };
        let mut user = match (self.find(name), name.parse::<u32>()) {
            (Ok(user), _) => user,
            (Err(_), Ok(uid)) => User {
                name: name.to_owned(),
                uid,
                gid: if uid == 0 { 0 } else { uid },
                groups: Vec::new(),
                home: if uid == 0 { "/root" } else { "/" }.to_owned(),
                shell: String::new(),
            },
            // Images without the file have a root all the same.
            (Err(_), Err(_)) if name == "root" => {
                return self.identity(&wanted.replacen("root", "0", 1));
            }
            (Err(error), Err(_)) => return Err(error),
        };
        if let Some(group) = group.filter(|group| !group.is_empty()) {
            user.gid = self.find_group(group)?;
        }
        if !user.groups.contains(&user.gid) {
            user.groups.push(user.gid);
        }
        Ok(user)
    }

    fn groups_of<'a>(&'a self, name: &'a str) -> impl Iterator<Item = u32> + 'a {
        self.group.lines().filter_map(move |line| {
            let mut fields = line.split(':');
            let gid = fields.nth(2)?.parse().ok()?;
            fields
                .next()?
                .split(',')
                .any(|member| member == name)
                .then_some(gid)
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn users_are_found_by_name_and_number_and_odd_lines_are_passed_over() {
        let names = Names {
            passwd:
                "root:x:0:0:root:/root:/bin/sh\n\nbroken\n:::\nann:x:1000:1001::/home/ann:/bin/sh\n"
                    .into(),
            group: "root:x:0:\nann:x:1001:\ndocker:x:7:bob,ann\nodd\n".into(),
        };
        let ann = User {
            name: "ann".into(),
            uid: 1000,
            gid: 1001,
            groups: vec![7, 1001],
            home: "/home/ann".into(),
            shell: "/bin/sh".into(),
        };
        assert_eq!(names.find("ann").unwrap(), ann);
        assert_eq!(names.find("1000").unwrap(), ann);
        assert!(names.find("eve").is_err());
        assert_eq!(names.identity("ann").unwrap().gid, 1001);
        assert_eq!(names.identity("ann:docker").unwrap().gid, 7);
        let stranger = names.identity("4000:5000").unwrap();
        assert_eq!((stranger.uid, stranger.gid), (4000, 5000));
        assert!(names.identity("eve").is_err() && names.identity("ann:eves").is_err());
        assert_eq!(Names::default().identity("root").unwrap().uid, 0);
        assert_eq!(
            (names.user(0), names.user(5), names.group(7)),
            ("root".into(), "5".into(), "docker".into())
        );
    }
}
