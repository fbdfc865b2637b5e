"""Git with the published SDK 0.1.9, which runs it with exec: `git.py MACHINE USER PASSWORD`, in a machine where
`tests/python/git_server.py` serves what `tests/system/git.rs` made."""

import asyncio
import subprocess
import sys
import tempfile
from pathlib import Path

from nullspace import AsyncSandbox, Sandbox
from nullspace.errors import GitError
from nullspace.git import GitHttpsAuth

MACHINE, USER, PASSWORD = sys.argv[1:]
PRIVATE = "http://127.0.0.1:8080/private/a.git"
auth = GitHttpsAuth(USER, PASSWORD)


def refused(work, text):
    try:
        work()
    except GitError as error:
        assert text in error.stderr + str(error), error
        return
    raise AssertionError("no GitError")


box = Sandbox.connect(MACHINE)
git = box.git


def sh(line):
    done = box.commands.run(line, shell=True)
    assert done.exit_code == 0, (line, done)
    return done.stdout.strip()


# /workspace is cloned into although the platform's folder is there; not over something else.
sh("mkdir -p /workspace/.nullspace; touch /workspace/.nullspace/x /workspace/left")
refused(lambda: git.clone(PRIVATE, auth=auth), "not an empty directory")
sh("rm /workspace/left")
refused(lambda: git.clone(PRIVATE), "could not read Username")
refused(lambda: git.clone(PRIVATE, auth=GitHttpsAuth(USER, "wrong")), "Authentication failed")
git.clone(PRIVATE, auth=auth)
assert sh("cat /workspace/file; ls -A /workspace/.nullspace") == "one\nx"
sh("rm -r /workspace/.nullspace")
sh("git init -q -b main /srv/own; cd /srv/own; mkdir .nullspace; touch .nullspace/x; git add .; git -c user.name=s -c user.email=s@x commit -qm x")
sh("mkdir /tmp/away; mv /workspace/.git /workspace/file /tmp/away")
refused(lambda: git.clone("/srv/own"), "reserved path")
sh("mv /tmp/away/.git /tmp/away/file /workspace")

git.configure_user("Zoë", "z@x")
assert git.get_config("user.name") == "Zoë"
git.set_config("pull.rebase", "false", scope="local", path="/workspace")
status = git.status()
assert (status.branch, status.clean) == ("main", True), status
git.create_branch("/workspace", "topic")
box.files.write("/workspace/new file", "hello\n")
assert git.status().changed_files, git.status()
git.commit("a message\n\nof two", files=["new file"])
assert git.status().clean
git.push(branch="topic", set_upstream=True, auth=auth)
refused(lambda: git.push(), "could not read Username")
box.files.write("/workspace/file", "changed\n")
assert "+changed" in git.diff()
git.commit("all")
git.push(auth=auth)
git.pull(auth=auth)
assert sh("git -C /srv/git/private/a.git log --format=%s topic") == "all\na message\nfirst"
git.checkout("main")
branches = git.branches()
assert branches.current_branch == "main" and branches.branches == ["main", "topic"]
git.delete_branch("/workspace", "topic", force=True)
git.remote_add("/workspace", "open", "http://127.0.0.1:8080/open/a.git", fetch=True)
git.remote_add("/workspace", "open", "http://127.0.0.1:8080/open/a.git", overwrite=True)
assert not sh("ls -d /tmp/nullspace-git-* 2>/dev/null || true")

# What its user wants to stay.
git.dangerously_authenticate(USER, PASSWORD, host="127.0.0.1:8080", protocol="http")
git.clone(PRIVATE, "/srv/kept", depth=1, branch="main")

# The same with a key, by a server in the machine.
with tempfile.TemporaryDirectory() as keys:
    key = Path(keys, "id")
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    sh("mkdir -p /run/sshd /etc/ssh; echo 'sshd:x:100:65534::/run/sshd:/bin/false' >> /etc/passwd")
    box.files.write("/etc/ssh/keys", key.with_suffix(".pub").read_text())
    settings = "Port 22\nListenAddress 127.0.0.1\nHostKey /etc/ssh/host\nAuthorizedKeysFile /etc/ssh/keys\nUsePAM no\nStrictModes no\n"
    box.files.write("/etc/ssh/sshd_config", settings)
    sh("ssh-keygen -q -t ed25519 -N '' -f /etc/ssh/host && /usr/sbin/sshd -f /etc/ssh/sshd_config -E /srv/sshd.log")
    refused(lambda: git.clone("root@127.0.0.1:/srv/git/private/a.git", "/srv/by-ssh"), "")
    git.add_ssh_key(key.read_text())
    assert sh("stat -c %a /root/.ssh/id_rsa") == "600"
    git.clone("root@127.0.0.1:/srv/git/private/a.git", "/srv/by-ssh")
box.close()


async def later():
    box = await AsyncSandbox.connect(MACHINE)
    await box.git.clone(PRIVATE, "/srv/later", auth=auth)
    await box.git.pull(path="/srv/later", auth=auth)
    assert (await box.git.status(path="/srv/later")).clean
    await box.close()


asyncio.run(later())
