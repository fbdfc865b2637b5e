"""Git with the published SDK 1.0.3, which has endpoints for it: `git_next.py MACHINE USER PASSWORD`, as `git.py`."""

import asyncio
import subprocess
import sys
import tempfile
from pathlib import Path

from nullspace import AsyncMachine, Machine
from nullspace.errors import GitError
from nullspace.git import GitHttpsAuth, GitSshAuth

MACHINE, USER, PASSWORD = sys.argv[1:]
PRIVATE = "http://127.0.0.1:8080/private/a.git"
auth = GitHttpsAuth(USER, PASSWORD)


def refused(work, text):
    try:
        work()
    except GitError as error:
        assert text in str(error), error
        assert PASSWORD not in str(error)
        return
    raise AssertionError("no GitError")


machine = Machine.connect(MACHINE)
git = machine.git


def sh(line):
    done = machine.commands.run(line, shell=True)
    assert done.exit_code == 0, (line, done)
    return done.stdout.strip()


refused(lambda: git.clone(PRIVATE), "could not read Username")
refused(lambda: git.clone(PRIVATE, auth=GitHttpsAuth(USER, "wrong")), "Authentication failed")
git.clone(PRIVATE, auth=auth)
status = git.status()
assert (status.branch, status.clean, status.ahead, status.behind) == ("main", True, 0, 0), status
git.create_branch("/workspace", "topic")
machine.files.write("/workspace/new file", "hello\n")
machine.files.write("/workspace/file", "changed\n")
status = git.status()
assert [(f.path, f.status, f.staged) for f in status.changed] == [("file", ".M", False), ("new file", "??", False)], status
git.add(files=["file"])
git.commit("first of two", files=["new file"], author_name="Zoë", author_email="z@x")
refused(lambda: git.commit("nothing", author_name="a", author_email="b"), "nothing to commit")
[newest, oldest] = git.log()
assert (newest.message, newest.author_name, oldest.message) == ("first of two", "Zoë", "first")
assert [commit.sha for commit in git.log(limit=1)] == [newest.sha]
refused(lambda: git.push(), "no upstream branch")
refused(lambda: git.push(branch="topic"), "could not read Username")
git.push(branch="topic", set_upstream=True, auth=auth)
git.pull(auth=auth)
branches = git.branches()
assert (branches.current_branch, branches.branches) == ("topic", ["main", "topic"]), branches
git.checkout("main")
refused(lambda: git.checkout("none"), "none")
git.delete_branch("/workspace", "topic")
git.checkout("again", create=True)
assert git.diff() == ""
git.remote_add("/workspace", "open", "http://127.0.0.1:8080/open/a.git", fetch=True)
refused(lambda: git.status(path="/srv"), "not a git repository")

with tempfile.TemporaryDirectory() as keys:
    key = Path(keys, "id")
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "open sesame", "-f", key], check=True)
    sh("mkdir -p /run/sshd /etc/ssh; echo 'sshd:x:100:65534::/run/sshd:/bin/false' >> /etc/passwd")
    machine.files.write("/etc/ssh/keys", key.with_suffix(".pub").read_text())
    settings = "Port 22\nListenAddress 127.0.0.1\nHostKey /etc/ssh/host\nAuthorizedKeysFile /etc/ssh/keys\nUsePAM no\nStrictModes no\n"
    machine.files.write("/etc/ssh/sshd_config", settings)
    sh("ssh-keygen -q -t ed25519 -N '' -f /etc/ssh/host && /usr/sbin/sshd -f /etc/ssh/sshd_config -E /srv/sshd.log")
    by_key = GitSshAuth(key.read_text(), "open sesame")
    refused(lambda: git.clone("root@127.0.0.1:/srv/git/private/a.git", "/srv/ssh", auth=GitSshAuth(key.read_text())), "passphrase")
    git.clone("root@127.0.0.1:/srv/git/private/a.git", "/srv/ssh", auth=by_key)
    git.pull(path="/srv/ssh", auth=by_key)
machine.close()


async def later():
    machine = await AsyncMachine.connect(MACHINE)
    await machine.git.clone(PRIVATE, "/srv/later", auth=auth)
    await machine.git.pull(path="/srv/later", auth=auth)
    assert (await machine.git.status(path="/srv/later")).clean
    await machine.close()


asyncio.run(later())
