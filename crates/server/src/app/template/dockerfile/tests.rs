#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::{check::check, *};
use crate::app::template::program::{Action, Command, CopyFrom, From};

fn read(text: &str) -> Program {
    compile(text, &BTreeMap::new(), None).unwrap()
}

fn refused(text: &str) -> String {
    compile(text, &BTreeMap::new(), None).unwrap_err().message
}

fn only(text: &str) -> Vec<Action> {
    let program = read(&format!("FROM base\n{text}"));
    let instructions = program.stages.into_iter().next().unwrap().instructions;
    instructions.into_iter().map(|i| i.action).collect()
}

fn line(action: &Action) -> &str {
    match action {
        Action::Run(run) => match &run.command {
            Command::Line(line) => line,
            Command::Words(words) => panic!("{words:?}"),
        },
        other => panic!("{other:?}"),
    }
}

#[test]
fn lines_go_on_and_comments_do_not_count() {
    let found = only("RUN a && \\\n# why\n\n   b \\\n && c\nRUN [\"x\", \"y z\"]");
    assert_eq!(line(&found[0]), "a &&    b  && c");
    let Action::Run(run) = &found[1] else {
        panic!()
    };
    assert_eq!(run.command, Command::Words(vec!["x".into(), "y z".into()]));
    let program = read("# escape=`\nFROM base\nRUN a `\n b\\");
    assert_eq!(line(&program.stages[0].instructions[0].action), "a  b\\");
    assert_eq!(program.stages[0].instructions[0].line, Some(3));
}

#[test]
fn here_documents() {
    let found = only(
        "RUN <<EOF\necho $HOME\nEOF\nRUN cat <<'X' > /a\n$one\nX\nCOPY <<-N.txt /b/\n\tz\n\tN.txt\n",
    );
    assert_eq!(line(&found[0]), "echo $HOME\n");
    assert_eq!(line(&found[1]), "cat <<'X' > /a\n$one\nX\n");
    let found = only("RUN <<EOF\n#!/usr/bin/env python3\nprint(1)\nEOF");
    assert!(line(&found[0]).contains("#!/usr/bin/env python3\nprint(1)\n"));
    let found = only("COPY --chmod=600 <<one <<'two' /etc/\n$a\none\n$b\ntwo");
    let Action::Copy(copy) = &found[0] else {
        panic!()
    };
    assert_eq!(copy.inline.len(), 2);
    assert!(copy.inline[0].expands && !copy.inline[1].expands);
    assert_eq!(copy.inline[1].content, "$b\n");
    assert!(refused("FROM base\nRUN <<EOF\nx").contains("line 2"));
    // Not one of them.
    assert_eq!(line(&only("RUN cat <<< word")[0]), "cat <<< word");
}

#[test]
fn variables() {
    let known = |name: &str| match name {
        "A" => Some("one".to_owned()),
        "E" => Some(String::new()),
        _ => None,
    };
    for (text, expected) in [
        ("$A/${A}", "one/one"),
        ("\\$A '$A' \"$A\"", "$A $A one"),
        ("${X:-d}${X-d}${E:-d}${E-d}", "ddd"),
        ("${A:+yes}${X:+no}", "yes"),
        ("${X:-${A}}", "one"),
        ("a\\ b\"c d\"", "a bc d"),
        ("$", "$"),
    ] {
        assert_eq!(expand(text, &known).unwrap(), expected, "{text}");
    }
    for wrong in ["${A", "${A%x}", "'open", "${}", "${X:?gone}"] {
        assert!(expand(wrong, &known).is_err(), "{wrong}");
    }
    assert_eq!(
        expand_plain("\"$A\" \\n \\$A", &known).unwrap(),
        "\"one\" \\n $A"
    );
    assert_eq!(
        expand(&words::literal("a'$B\\\""), &known).unwrap(),
        "a'$B\\\""
    );
}

#[test]
fn stages_are_found_by_name_and_number() {
    let text = "ARG V=1\nFROM img:$V AS Build\nRUN a\nFROM build AS next\nCOPY --from=0 /x /y\nFROM scratch\nCOPY --from=next /y /z\nCOPY --from=other:1 /y /z";
    let program = read(text);
    assert_eq!(program.stages[0].from, From::Reference("img:1".into()));
    assert_eq!(program.stages[1].from, From::Stage(0));
    assert_eq!(program.stages[2].from, From::Scratch);
    let froms: Vec<CopyFrom> = (program.stages[2].instructions.iter())
        .map(|i| match &i.action {
            Action::Copy(copy) => copy.from.clone(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(
        froms,
        [CopyFrom::Stage(1), CopyFrom::Reference("other:1".into())]
    );
    let args = BTreeMap::from([
        ("V".to_owned(), "2".to_owned()),
        ("W".to_owned(), "x".to_owned()),
    ]);
    let program = compile(text, &args, Some("build")).unwrap();
    assert_eq!(program.stages.len(), 1);
    assert_eq!(program.stages[0].from, From::Reference("img:2".into()));
    assert!(program.warnings[0].contains('W'), "{:?}", program.warnings);
    assert!(compile(text, &args, Some("none")).is_err());
}

#[test]
fn secrets_are_asked_for() {
    let found = only(
        "RUN --mount=type=secret,id=t,target=/root/.t,required --mount=type=secret,id=e,env=E x",
    );
    let Action::Run(run) = &found[0] else {
        panic!()
    };
    assert_eq!(run.secrets[0].target.as_deref(), Some("/root/.t"));
    assert!(run.secrets[0].required);
    assert_eq!(run.secrets[1].env.as_deref(), Some("E"));
}

#[test]
fn what_is_not_known_is_refused_by_name_and_line() {
    for (text, words) in [
        ("", &["line 1", "FROM"][..]),
        ("RUN x", &["line 1", "RUN"]),
        ("FROM a\nFOO x", &["line 2", "FOO"]),
        ("FROM a\nONBUILD RUN x", &["line 2", "ONBUILD"]),
        ("FROM a\n\nRUN --mount=type=ssh x", &["line 3", "type=ssh"]),
        (
            "FROM a\nRUN --security=insecure x",
            &["line 2", "--security"],
        ),
        ("FROM a\nCOPY --parents a b", &["line 2", "--parents"]),
        ("FROM a\nCOPY a", &["line 2", "COPY"]),
        ("FROM a\nADD https://x/y /z", &["line 2", "URL"]),
        ("FROM a\nSHELL /bin/sh", &["line 2", "SHELL"]),
        ("FROM a\nENV", &["line 2", "ENV"]),
        ("FROM a\nENV A", &["line 2", "ENV"]),
        ("FROM --platform=windows/amd64 a", &["line 1", "windows"]),
        ("FROM a b c d", &["line 1", "FROM"]),
        ("FROM a AS x\nFROM b AS X", &["line 2", "x"]),
        ("FROM a AS x\nCOPY --from=x /a /b", &["line 2", "own stage"]),
        (
            "FROM a\nHEALTHCHECK --interval=soon CMD x",
            &["line 2", "soon"],
        ),
    ] {
        let message = refused(text);
        assert!(
            words.iter().all(|word| message.contains(word)),
            "{text:?}: {message}"
        );
    }
}

#[test]
fn words_of_other_instructions() {
    let found = only(
        "ENV A=1 B=\"x y\"\nENV C a b\nHEALTHCHECK --interval=1m30s CMD [\"a\"]\nEXPOSE 80 90/udp",
    );
    assert_eq!(
        found[0],
        Action::Env(vec![
            ("A".into(), "1".into()),
            ("B".into(), "\"x y\"".into())
        ])
    );
    assert_eq!(found[1], Action::Env(vec![("C".into(), "a b".into())]));
    let Action::Healthcheck(check) = &found[2] else {
        panic!()
    };
    assert_eq!(check.interval_ns, Some(90_000_000_000));
    assert_eq!(check.test, ["CMD", "a"]);
    assert_eq!(found[3], Action::Expose(vec!["80".into(), "90/udp".into()]));
}

/// A few lines can stand for any amount of text, and a deep word for any amount of stack.
#[test]
fn what_a_dockerfile_comes_to_is_bounded() {
    let doubled: String = (0..60).map(|_| "ARG A=$A$A\n").collect();
    let doubled = format!("ARG A=12345678\n{doubled}FROM $A");
    let many = format!("FROM base\nARG {}", "A ".repeat(500_000));
    let inherited = format!(
        "ARG A={}\nFROM base\n{}",
        "x".repeat(900_000),
        "ARG A\n".repeat(400)
    );
    let stages = "FROM a\n".repeat(140_000);
    let deep = format!("FROM {}x{}", "${A:-".repeat(200_000), "}".repeat(200_000));
    for (text, why) in [
        (doubled, "over 1048576 bytes"),
        (many, "over 500 instructions"),
        (inherited, "over 16777216 bytes"),
        (stages, "over 500 stages"),
        (deep, "over 16 deep"),
    ] {
        let message = refused(&text);
        assert!(message.contains(why), "{why}: {message}");
    }
    let level = |n: usize| format!("{}x{}", "${A:-".repeat(n), "}".repeat(n));
    assert_eq!(expand(&level(16), &|_| None).unwrap(), "x");
    assert!(expand(&level(17), &|_| None).is_err());
    let long = "y".repeat(1 << 20);
    let known = |_: &str| Some(long.clone());
    assert_eq!(expand("$A", &known).unwrap().len(), 1 << 20);
    for find in [expand, expand_plain] {
        assert!(find("$A$A", &known).unwrap_err().contains("over"));
        assert!(find(&"$A".repeat(100_000), &known).is_err());
    }
}

/// Parts that a Dockerfile is made of, and that go wrong together.
fn part() -> impl Strategy<Value = String> {
    let fixed = [
        "FROM a",
        "FROM a AS b",
        "from scratch",
        "FROM b",
        "FROM $A",
        "RUN",
        "run x",
        "COPY",
        "ADD",
        "ENV",
        "ARG",
        "LABEL",
        "WORKDIR",
        "USER",
        "SHELL",
        "CMD",
        "ENTRYPOINT",
        "EXPOSE 80",
        "VOLUME",
        "HEALTHCHECK",
        "NONE",
        "ONBUILD",
        "STOPSIGNAL",
        "--from=0",
        "--from=b",
        "--from=1",
        "--mount=type=secret,id=x",
        "--mount=type=cache",
        "--mount=",
        "--chown=1:1",
        "--chmod=0755",
        "--interval=1m3s",
        "--retries=9",
        "--platform=$X",
        "A=1",
        "A",
        "A=$A",
        "\"",
        "'",
        "\\",
        "`",
        "$",
        "${",
        "${A",
        "${A:-",
        "${A:+$A}",
        "${A:?no}",
        "}",
        "[\"a\", \"b\"]",
        "[",
        "<<E",
        "<<-E",
        "<<'E'",
        "<<\"E\"",
        "E",
        "<<<",
        "# escape=`",
        "# syntax=x",
        "#",
        "\u{feff}",
        "é",
        "\t",
        "/a",
        "..",
        "https://x/y",
    ];
    prop_oneof![
        12 => proptest::sample::select(fixed.to_vec()).prop_map(str::to_owned),
        1 => "[ -~]{0,6}",
        1 => any::<char>().prop_map(String::from),
    ]
}

fn dockerfile() -> impl Strategy<Value = String> {
    let part = (
        part(),
        prop_oneof![4 => Just(" "), 4 => Just("\n"), 1 => Just("\\\n"), 1 => Just("")],
    );
    let parts = proptest::collection::vec(part, 0..24);
    (any::<bool>(), parts).prop_map(|(is_begun, parts)| {
        let mut text = if is_begun { "FROM base\n" } else { "" }.to_owned();
        for (part, between) in parts {
            text.push_str(&part);
            text.push_str(between);
        }
        text
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn any_text_is_read_or_refused_with_its_line(text in dockerfile(), target in "[ab0-3]?") {
        check(&text, Some(&*target).filter(|target| !target.is_empty()));
    }
}
