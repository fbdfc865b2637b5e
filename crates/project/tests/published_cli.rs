//! The published CLI 0.1.9 and this crate over the same projects and configs: same detection, config, decisions,
//! digests and archives, byte for byte.
//!
//! Needs `NULLSPACE_TEST_PYTHON`, a Python with `nullspace-sdk[cli]==0.1.9` installed, and says so when skipped.

use nullspace_project::{AgentConfig, Bundle, detect, load};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A project directory under construction.
struct Project {
    dir: PathBuf,
    config: Option<PathBuf>,
}

impl Project {
    fn file(self, path: &str, content: &str) -> Self {
        self.file_with(path, content, 0o644)
    }

    fn file_with(self, path: &str, content: &str, mode: u32) -> Self {
        let path = self.dir.join(path);
        fs::create_dir_all(path.parent().expect("a parent")).expect("directories");
        fs::write(&path, content).expect("a file");
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("its mode");
        self
    }

    fn dir(self, path: &str, mode: u32) -> Self {
        fs::create_dir_all(self.dir.join(path)).expect("a directory");
        fs::set_permissions(self.dir.join(path), fs::Permissions::from_mode(mode))
            .expect("its mode");
        self
    }

    fn link(self, path: &str, target: &str) -> Self {
        symlink(target, self.dir.join(path)).expect("a symlink");
        self
    }

    /// A config that is complete without detection, and more of it.
    fn agent(self, more: &str) -> Self {
        self.file(
            "nullspace.agent.toml",
            &format!("name = 'n'\nentrypoint = 'e'\n{more}"),
        )
    }
}

/// The projects, each in its own directory below `root`.
struct Projects {
    root: PathBuf,
    all: Vec<Project>,
}

impl Projects {
    fn add(&mut self, name: &str, build: impl FnOnce(Project) -> Project) {
        let dir = self.root.join(format!("{:03}", self.all.len())).join(name);
        fs::create_dir_all(&dir).expect("a directory");
        self.all.push(build(Project { dir, config: None }));
    }
}

fn detection_rows(projects: &mut Projects) {
    projects.add("langgraph", |p| {
        p.file("langgraph.json", "{}")
            .file("pyproject.toml", "[project]\nname='My Graph'")
    });
    projects.add("langgraph-node", |p| {
        p.file("langgraph.json", "{}")
            .file("package.json", r#"{"name":"@a/graph"}"#)
    });
    projects.add("langgraph-bare", |p| p.file("langgraph.json", ""));
    projects.add("crew", |p| {
        p.file(
            "pyproject.toml",
            "[project]\ndependencies=['CrewAI[tools]>=1']",
        )
    });
    projects.add("crew-tool", |p| {
        p.file("pyproject.toml", "[tool.crewai]\ntype='crew'")
            .file("uv.lock", "")
    });
    projects.add("crew-requirements", |p| {
        p.file(
            "requirements.txt",
            "-r x\n# crewai\n  crewai == 2\r\nhttpx\n",
        )
    });
    projects.add("crew-comment", |p| {
        p.file("requirements.txt", "crewai # the framework\n")
    });
    projects.add("crew-poetry", |p| {
        p.file("pyproject.toml", "[tool.poetry.dependencies]\ncrewai='*'")
    });
    projects.add("crew-optional", |p| {
        p.file(
            "pyproject.toml",
            "[project.optional-dependencies]\nx=['crewai']",
        )
    });
    projects.add("crew-table", |p| {
        p.file("pyproject.toml", "[project.dependencies]\ncrewai='1'")
    });
    projects.add("claude", |p| {
        p.file("requirements.txt", "claude-agent-sdk\n")
            .file("main.py", "")
    });
    projects.add("claude-npm", |p| {
        p.file(
            "package.json",
            r#"{"name":"X Y","devDependencies":{"@anthropic-ai/claude-agent-sdk":"1"}}"#,
        )
    });
    projects.add("claude-dir", |p| {
        p.dir(".claude", 0o755).file("main.py", "")
    });
    projects.add("claude-md", |p| p.file("CLAUDE.md", "hello"));
    projects.add("openai", |p| {
        p.file("requirements.txt", "openai-agents @ git+https://x/y\n")
            .file("main.py", "")
    });
    projects.add("openai-short", |p| {
        p.file(
            "pyproject.toml",
            "[project]\nname='o'\ndependencies=['agents']",
        )
    });
    projects.add("openai-npm", |p| {
        p.file(
            "package.json",
            r#"{"optionalDependencies":{"@openai/agents":"1"}}"#,
        )
    });
    projects.add("Py Project", |p| {
        p.file("pyproject.toml", "")
            .file("main.py", "")
            .file("uv.lock", "")
    });
    projects.add("py-no-main", |p| {
        p.file("requirements.txt", "\u{feff}agents\n")
    });
    projects.add("py-broken", |p| {
        p.file("pyproject.toml", "[project\nname=")
            .file("main.py", "")
    });
    for (name, package) in [
        (
            "node-start",
            r#"{"name":"N","scripts":{"dev":"x","start":"y"}}"#,
        ),
        (
            "node-dev",
            r#"{"name":7,"scripts":{"dev":"x","start":"  "}}"#,
        ),
        ("node-agent", r#"{"scripts":{"agent":"x","start":1}}"#),
        ("node-none", r#"{"scripts":[]}"#),
        ("node-array", "[]"),
        ("node-broken", "{"),
        ("node-unnamed", r#"{"name":"---"}"#),
    ] {
        projects.add(name, |p| p.file("package.json", package));
    }
    projects.add("empty", |p| p);
    projects.add("Ünï cödé", |p| p.file("main.py", ""));
    projects.add("main-is-a-directory", |p| {
        p.file("main.py/x", "").file("requirements.txt", "")
    });
}

fn merges(projects: &mut Projects) {
    let node = r#"{"name":"n","scripts":{"start":"x"}}"#;
    let with = |file: &'static str| {
        move |p: Project| {
            p.file("package.json", node)
                .file("nullspace.agent.toml", file)
        }
    };
    projects.add("merge-empty", with(""));
    projects.add("merge-name", with("name = ' Other '"));
    projects.add("merge-port", with("service.port = 80"));
    projects.add(
        "merge-readiness",
        with("[service]\nreadiness = {type='http', path='/up'}"),
    );
    projects.add("merge-service-no-port", with("mode = 'service'"));
    projects.add(
        "merge-job",
        with("mode = 'JOB'\n[env]\nrequired=['A']\n[bundle]\ninclude=[]\nexclude=['*.md']"),
    );
    projects.add("merge-unknown", with("zebra=1\nalpha=2"));
    projects.add("merge-mode", with("mode = \"it's\""));
    projects.add("merge-toml", with("mode ="));
    projects.add(
        "merge-reserved",
        with("mode = 'worker'\n[permissions]\nallow_out=['a']\ndeny_out=[]\npty=true"),
    );
    projects.add("incomplete", |p| {
        p.file("nullspace.agent.toml", "name = 'x'")
    });
    projects.add("readiness-empty", |p| {
        p.agent("[service]\nport = 1\nreadiness = {}")
    });
    projects.add("named", |mut p| {
        p.config = Some(p.dir.join("other.toml"));
        p.agent("template = 'ignored'")
            .file("other.toml", "name='o'\nentrypoint='x'")
    });
    projects.add("named-missing", |mut p| {
        p.config = Some(p.dir.join("missing.toml"));
        p.agent("").file("main.py", "").file("requirements.txt", "")
    });
    projects.add("trailing-dot", |mut p| {
        p = p.file("main.py", "").file("requirements.txt", "");
        p.dir = p.dir.join(".");
        p
    });
    projects.add("missing", |mut p| {
        p.dir = p.dir.join("not/./here");
        p
    });
}

fn bundles(projects: &mut Projects) {
    let long = "d".repeat(60);
    projects.add("names", |p| {
        p.agent("")
            .file(&format!("{long}/{}", "f".repeat(39)), "exactly 100")
            .file(&format!("{long}/{}", "f".repeat(40)), "101")
            .file(&format!("{long}/{long}/{long}/x"), "deep")
            .dir(&format!("{long}/{}", "e".repeat(38)), 0o755)
            .dir(&format!("{long}/{}", "e".repeat(39)), 0o700)
            .file("grüße/😀.txt", "unicode")
            .file("a b/c'd\"e", "quotes")
            .file("new\nline", "odd")
            .file("back\\slash", "odd")
            .file("-dash", "")
            .file("Z", "")
            .file("_", "")
            .file("é", "")
            .file("～", "")
            .file("𐐷", "")
            .link("link-long", &"t/".repeat(70))
            .link("link-ünï", "zïel")
            .link(&"n".repeat(120), &"m".repeat(120))
    });
    projects.add("modes", |p| {
        p.agent("")
            .file_with("run.sh", "x", 0o755)
            .file_with("private", "x", 0o600)
            .file_with("set-id", "x", 0o4755)
            .file_with("read-only", "x", 0o444)
            .dir("sticky", 0o1777)
            .dir("tight", 0o500)
            .file("sizes/511", &"x".repeat(511))
            .file("sizes/512", &"x".repeat(512))
            .file("sizes/513", &"x".repeat(513))
            .file("sizes/big", &"y".repeat(300_000))
    });
    projects.add("order", |p| {
        p.agent("")
            .file("a/x", "")
            .file("a-b", "")
            .file("a.b", "")
            .file("a0", "")
            .file("B", "")
    });
    projects.add("links", |p| {
        p.agent("")
            .file("a/x", "")
            .link("ok", "a/x")
            .link("a/up", "../ok")
            .link("dangling", "nowhere")
            .link("dir", "a")
    });
    for (name, target) in [
        ("absolute", "/etc/passwd"),
        ("escapes", "../x"),
        ("backslash", "..\\x"),
        ("drive", "\\x"),
        ("inside-out", "a/../../x"),
    ] {
        projects.add(name, |p| p.agent("").link("l", target));
        // A symlink that stays behind is checked all the same.
        projects.add(name, |p| {
            p.agent("[bundle]\nexclude=['l']").link("l", target)
        });
    }
    let tree = |p: Project| {
        p.file("src/a.py", "1")
            .file("src/sub/b.py", "2")
            .file("src/sub/c.md", "3")
            .file("README.md", "4")
            .file("docs/x.md", "5")
            .file("docs/deep/y.py", "6")
            .file("build/out", "7")
            .file("src/build/out", "8")
            .file("node_modules/m/index.js", "9")
            .file("src/id_rsa", "10")
            .file("src/id_rsa.pub", "11")
            .file("k.pem", "12")
            .file(".env", "13")
            .file(".env.local", "14")
            .file(".env.example", "15")
            .file("src/.env.example", "16")
            .file("x.pyc", "17")
            .file(".git/HEAD", "18")
            .file("sub/.gitignore", "*\n")
            .file("sub/z", "19")
            .link("out", "build")
            .link("dist", "src")
            .link("venv", "src")
    };
    for bundle in [
        "",
        "include=['src']",
        "include=['./src']",
        "include=['./']",
        "include=['*.py']",
        "include=['src/','README.md']",
        "include=['/src/sub']",
        "include=['src/**']",
        "include=['**/b.py']",
        "include=['src/*.py']",
        "include=['!src']",
        "include=['*','!docs']",
        "include=['*','!docs/']",
        "include=['src','!src/sub']",
        "include=['src','!*.md']",
        "include=['docs/deep/y.py']",
        "include=['node_modules']",
        "include=['build','.git']",
        "include=['.env']",
        "exclude=['!.env']",
        "exclude=['src']",
        "exclude=['src/','!src/a.py']",
        "exclude=['src/*','!src/a.py']",
        "exclude=['*.md','!README.md']",
        "exclude=['/README.md']",
        "exclude=['docs/**/y.py']",
        "exclude=['**']",
        "exclude=['**/']",
        "exclude=['*/']",
        "exclude=['#x',' ','docs']",
        "exclude=['doc?']",
        "exclude=['[dr]ocs']",
        "exclude=['[!d]*']",
        "exclude=['[']",
        "exclude=['sub/z']",
        "exclude=['dist']",
        "exclude=['dist/']",
        "include=['src']\nexclude=['sub']",
    ] {
        projects.add("patterns", |p| {
            tree(p.agent(&format!("[bundle]\n{bundle}")))
        });
    }
    for (name, text) in [
        (
            ".gitignore",
            "*.md\n!README.md\n/sub\n\\#x\n# note\nsrc/sub/  \r\n",
        ),
        (".nullspaceignore", "src\n!src/\n"),
        (".nullspaceignore", "*\n!*.py\n!*/\n"),
        (".gitignore", "docs/*\n!docs/deep\n\u{2028}README.md"),
        (".gitignore", "src/**/b.py\na/**/\n**/deep/**\n[a\n"),
        (".gitignore", ""),
    ] {
        projects.add("ignore", |p| tree(p.agent("").file(name, text)));
    }
    projects.add("both", |p| {
        tree(
            p.agent("[bundle]\nexclude=['docs']")
                .file(".gitignore", "src\ndocs")
                .file(".nullspaceignore", "!src\nREADME.md"),
        )
    });
    projects.add("nothing", |p| p.agent("[bundle]\ninclude=['absent']"));
}

/// Small numbers, the same on every run.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 33) as usize % limit
    }

    fn pick<'a>(&mut self, from: &[&'a str]) -> &'a str {
        from[self.below(from.len())]
    }
}

/// Trees of few names and patterns of the same few, so that much matches.
fn random_patterns(projects: &mut Projects) {
    let mut random = Random(0x5eed_5eed_5eed_5eed);
    for _ in 0..150 {
        let pattern = |random: &mut Random| {
            let mut pattern = String::new();
            pattern.push_str(random.pick(&["", "", "", "!", "/", "!/", "**/"]));
            for index in 0..=random.below(3) {
                if index > 0 {
                    pattern.push('/');
                }
                pattern.push_str(random.pick(&[
                    "a", "b", "ab", "a*", "*b", "?", "*", "**", "[ab]", "[!a]", "a**b", "\\a",
                    "[a-", "A",
                ]));
            }
            pattern.push_str(random.pick(&["", "", "", "/", "/*", "/**", " ", "\\ ", "//"]));
            pattern
        };
        let patterns = |random: &mut Random| {
            (0..1 + random.below(4))
                .map(|_| pattern(random))
                .collect::<Vec<_>>()
        };
        let include = if random.below(3) == 0 {
            patterns(&mut random)
        } else {
            vec![".".to_owned()]
        };
        let (exclude, ignore) = (patterns(&mut random), patterns(&mut random));
        projects.add("random", |mut p| {
            p = p.agent(&format!(
                "[bundle]\ninclude = {}\nexclude = {}",
                json!(include),
                json!(exclude)
            ));
            p = p.file(".gitignore", &ignore.join("\n"));
            for _ in 0..20 {
                let depth = 1 + random.below(4);
                let path: Vec<_> = (0..depth)
                    .map(|_| random.pick(&["a", "b", "ab", "bb", "aab", "c"]))
                    .collect();
                let path = p.dir.join(path.join("/"));
                // A name may already be taken by the other kind.
                if fs::create_dir_all(path.parent().expect("a parent")).is_ok() && !path.exists() {
                    fs::write(&path, "x").expect("a file");
                }
            }
            p
        });
    }
}

const CONFIGS: &[&str] = &[
    "",
    "name='n'",
    "name='n'\nentrypoint='e'",
    "name=' n '\nentrypoint='\te\\n'\nmode='Service'\nservice.port=65535",
    "name=1",
    "name='  '",
    "name=2020-01-01",
    "name='n'\nmode='batch'",
    "name='n'\nmode=\"Ba'tch\"",
    "name='n'\nmode=[]",
    "name='n'\ntemplate=''",
    "name='n'\nworkdir='x'",
    "name='n'\nworkdir='x'\nentrypoint=1\nzz=1\naa.bb=2",
    "name='n'\ninstall=true",
    "name='n'\nentrypoint='e'\nenv=[]",
    "name='n'\nentrypoint='e'\n[env]\nrequired='A'",
    "name='n'\nentrypoint='e'\n[env]\nrequired=['A',' ']",
    "name='n'\nentrypoint='e'\n[env]\noptional=[1]\nfoo=1",
    "name='n'\nentrypoint='e'\n[env]\noptional=['B ','C']\nrequired=[' A']",
    "name='n'\nentrypoint='e'\n[bundle]\ninclude=[]\nexclude=[' x ']",
    "name='n'\nentrypoint='e'\n[bundle]\nincludes=[]",
    "name='n'\nentrypoint='e'\n[bundle]\ninclude={}",
    "name='n'\nentrypoint='e'\n[resources]\nvcpus=2\nmemory_mb=512\ndisk_mb=1\ntimeout_seconds=9",
    "name='n'\nentrypoint='e'\n[resources]\nvcpus=0",
    "name='n'\nentrypoint='e'\n[resources]\nvcpus=true",
    "name='n'\nentrypoint='e'\n[resources]\nmemory_mb=1.0",
    "name='n'\nentrypoint='e'\n[resources]\ndisk_mb=-1",
    "name='n'\nentrypoint='e'\n[resources]\ntimeout_seconds='1'\ngpu=1",
    "name='n'\nentrypoint='e'\n[permissions]\ninternet_access=1",
    "name='n'\nentrypoint='e'\n[permissions]\nallow_out='x'",
    "name='n'\nentrypoint='e'\n[permissions]\nmax_vcpus=0",
    "name='n'\nentrypoint='e'\n[permissions]\ninternet_access=true\npublic_url=false\nallow_public_traffic=true\nallow_out=['a','b']\ndeny_out=['c']\nvolumes=true\ndesktop=false\npty=true\ndebug=true\nretain_on_failure=true\nmax_vcpus=1\nmax_memory_mb=2\nmax_disk_mb=3\nmax_timeout_seconds=4",
    "name='n'\nentrypoint='e'\nmode='service'",
    "name='n'\nentrypoint='e'\n[service]\nport=65536",
    "name='n'\nentrypoint='e'\n[service]\nport=0\nreadiness=1",
    "name='n'\nentrypoint='e'\n[service]\nreadiness=1",
    "name='n'\nentrypoint='e'\n[service]\nreadiness={kind='http'}",
    "name='n'\nentrypoint='e'\n[service]\nreadiness={type=''}",
    "name='n'\nentrypoint='e'\n[service]\nreadiness={timeout_seconds=0}",
    "name='n'\nentrypoint='e'\n[service]\nport=1\nreadiness={timeout_seconds=5,path='/h',type='http'}",
    "name='n'\nentrypoint='e'\n[service]\nreadiness={}",
    "name='n'\nentrypoint='e'\n[debug]\nretain_on_failure='x'",
    "name='n'\nentrypoint='e'\n[debug]\nretain_seconds=0",
    "name='n'\nentrypoint='e'\n[debug]\nretain_on_failure=true\nretain_seconds=60",
    "name='n'\nentrypoint='e'\n[debug]\nx=1",
    "name='n'\nentrypoint='e'\n[outputs]\npaths=['a','/b/c','d/']",
    "name='n'\nentrypoint='e'\n[outputs]\npaths=['/']",
    "name='n'\nentrypoint='e'\n[outputs]\npaths=['a','b//c']",
    "name='n'\nentrypoint='e'\n[outputs]\npaths=['./a']",
    "name='n'\nentrypoint='e'\n[outputs]\npaths=['a/..']",
    "name='n'\nentrypoint='e'\n[outputs]\npaths=['//']",
    "name='n'\nentrypoint='e'\n[outputs]\npaths=['a//']",
    "name='n'\nentrypoint='e'\n[outputs]\npath=['a']",
    "name='nä\\u007f\"\\\\'\nentrypoint=\"e \\u00e9 \\\\ \\t x\"",
    "name='😀'\nentrypoint='e'\nmode='interactive'\n[bundle]\nexclude=['ä']",
];

#[test]
fn agrees_with_the_published_cli() {
    let Ok(python) = std::env::var("NULLSPACE_TEST_PYTHON") else {
        println!("skipped: NULLSPACE_TEST_PYTHON is not set");
        return;
    };
    let world = tempfile::tempdir().expect("a directory");
    let mut projects = Projects {
        root: world.path().to_path_buf(),
        all: Vec::new(),
    };
    detection_rows(&mut projects);
    merges(&mut projects);
    bundles(&mut projects);
    random_patterns(&mut projects);

    let cases: Vec<_> = projects
        .all
        .iter()
        .map(|p| json!({"dir": p.dir, "config": p.config}))
        .collect();
    let theirs = ask(&python, &json!({"projects": cases, "configs": CONFIGS}));
    let answers = |key: &str| theirs[key].as_array().cloned().unwrap_or_default();

    let mut differing = Vec::new();
    let (mut compared, mut archives) = (0, 0);
    for (project, theirs) in projects.all.iter().zip(answers("projects")) {
        compared += 1;
        let ours = describe(project);
        archives += usize::from(theirs["archive"].is_object());
        for key in [
            "error",
            "config",
            "detection",
            "bundle",
            "archive",
            "init",
            "init_text",
        ] {
            let theirs = match key {
                "config" | "detection" | "bundle" => &theirs["dry_run"][key],
                _ => &theirs[key],
            };
            let (mut theirs, mut ours) = (theirs.clone(), ours[key].clone());
            if key == "bundle" {
                for side in [&mut theirs, &mut ours] {
                    side.as_object_mut()
                        .map(|bundle| bundle.remove("generated_at"));
                }
            }
            if key == "init" {
                theirs.as_object_mut().map(|init| init.remove("path"));
            }
            if key == "error" {
                // It crashes on a pattern it cannot read, where an error is due.
                if theirs
                    .as_str()
                    .is_some_and(|text| text.starts_with("crash: "))
                    && ours
                        .as_str()
                        .is_some_and(|text| text.starts_with("invalid ignore pattern: "))
                {
                    continue;
                }
                // The parsers word their complaints differently.
                for side in [&mut theirs, &mut ours] {
                    if let Some((before, _)) = side
                        .as_str()
                        .and_then(|text| text.split_once("invalid TOML: "))
                    {
                        *side = json!(before);
                    }
                }
            }
            if theirs != ours {
                let file = fs::read_to_string(project.dir.join("nullspace.agent.toml"))
                    .unwrap_or_default();
                differing.push(format!(
                    "{}: {key}\n{file}\ntheirs {theirs:#}\nours   {ours:#}",
                    project.dir.display()
                ));
            }
        }
    }
    for (text, theirs) in CONFIGS.iter().zip(answers("configs")) {
        compared += 1;
        let ours = match AgentConfig::from_toml(text) {
            Err(error) => json!({"error": format!("f: {error}")}),
            Ok(config) => {
                let again =
                    AgentConfig::from_toml(&config.to_toml()).expect("what was written is read");
                assert_eq!(again, config, "{text}");
                let mut wire =
                    AgentConfig::from_wire(&config.to_wire()).expect("what was sent is read");
                wire.bundle = config.bundle.clone();
                assert_eq!(wire, config, "{text}");
                // Their text for characters beyond the first plane is no TOML, and they drop an empty table.
                let toml = if text.contains('😀') || text.contains("readiness={}") {
                    theirs["toml"].clone()
                } else {
                    json!(config.to_toml())
                };
                json!({
                    "config": config, "wire": config.to_wire(), "digest": config.config_digest(), "toml": toml,
                })
            }
        };
        if theirs != ours {
            differing.push(format!("{text}\ntheirs {theirs:#}\nours   {ours:#}"));
        }
    }
    assert!(compared >= projects.all.len() + CONFIGS.len());
    assert!(
        differing.is_empty(),
        "{} differ:\n{}",
        differing.len(),
        differing[..differing.len().min(5)].join("\n\n")
    );
    println!(
        "compared {} projects, {archives} with an archive, and {} configs",
        projects.all.len(),
        CONFIGS.len()
    );
}

fn ask(python: &str, cases: &Value) -> Value {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/published_cli.py");
    let mut child = Command::new(python)
        .arg(script)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the published CLI's python");
    let mut input = child.stdin.take().expect("a pipe");
    input
        .write_all(cases.to_string().as_bytes())
        .expect("the cases are taken");
    drop(input);
    let output = child.wait_with_output().expect("an answer");
    assert!(output.status.success(), "the script failed");
    serde_json::from_slice(&output.stdout).expect("json")
}

/// Our side of one project, in the shape of the script's answer.
fn describe(project: &Project) -> Value {
    let mut out = json!({});
    let result = load(&project.dir, project.config.as_deref())
        .map_err(|error| error.to_string())
        .and_then(|(config, detection)| {
            let bundle = Bundle::build(&project.dir, &config).map_err(|error| error.to_string())?;
            Ok((config, detection, bundle))
        });
    match result {
        Err(error) => out["error"] = json!(error),
        Ok((config, detection, bundle)) => {
            let mut archive = Vec::new();
            bundle.write_archive(&mut archive).expect("an archive");
            assert_eq!(
                archive.len() as u64,
                bundle.archive_len(),
                "{}",
                project.dir.display()
            );
            out["config"] = json!(config);
            out["detection"] = json!(detection);
            out["bundle"] = json!(bundle.manifest());
            out["archive"] =
                json!({"sha256": hex::encode(Sha256::digest(&archive)), "length": archive.len()});
        }
    }
    if let Ok(detection) = detect(&project.dir)
        && detection.config.entrypoint.is_some()
    {
        out["init_text"] = json!(detection.config.to_toml());
        out["init"] = json!({"created": true, "detection": detection, "config": detection.config});
    }
    out
}
