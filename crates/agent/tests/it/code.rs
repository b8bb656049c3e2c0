//! Code that runs to its end, and interpreter contexts.

use std::{fs, path::Path, process::Command};

use sandhaus_protocol::{
    code::{ChartKind, CodeRunReply},
    interpreter::{InterpreterContext, ListContextsReply},
};
use serde_json::{Value, json};

use crate::{
    socket::Socket,
    support::{Agent, Who, eventually},
};

/// Whether this machine has the program where the agent looks for it; said aloud where not.
fn has(program: &str) -> bool {
    let found =
        ["/usr/local/bin", "/usr/bin", "/bin"].iter().any(|folder| Path::new(folder).join(program).exists());
    if !found {
        eprintln!("SKIPPED: this machine has no {program}");
    }
    found
}

fn run(agent: &Agent, language: &str, code: &str) -> (i32, String) {
    let body =
        json!({ "language": language, "code": code, "argv": ["one", "two words"], "envs": { "A": "b" } });
    let reply: CodeRunReply = agent.post("/process/code-run", &body).json();
    (reply.exit_code, reply.result)
}

#[test]
fn python_sees_its_arguments_and_nothing_of_ours() {
    if !has("python3") {
        return;
    }
    let agent = Agent::start(None);
    let plain = "import sys, os\nprint(sys.argv, os.environ['A'], __name__, sys.path[0] == '')\nsys.exit(3)";
    // The same with a word that has it run by our own program.
    for code in [plain.to_owned(), format!("{plain} # pandas")] {
        let expected = "['-', 'one', 'two words'] b __main__ True\n";
        assert_eq!(run(&agent, "python", &code), (3, expected.to_owned()), "{code}");
    }
    let failing = "def f():\n    raise ValueError('ä')\nf()  # pandas";
    let trace = "Traceback (most recent call last):\n  File \"<stdin>\", line 3, in <module>\n  File \"<stdin>\", line 2, in f\nValueError: ä\n";
    assert_eq!(run(&agent, "python", failing), (1, trace.to_owned()));
    assert_eq!(
        run(&agent, "python", "import os # pandas\nprint(sorted(os.listdir('/proc/self/fd'))[3:])").0,
        0
    );
    let long = format!("print(len('''{}'''))", "x".repeat(300_000));
    assert_eq!(run(&agent, "python", &long), (0, "300000\n".to_owned()));
    assert_eq!(run(&agent, "python", "x =").0, 1);
    let slow = json!({ "language": "python", "timeout": 1, "code":
        "import subprocess as s\ns.Popen(['setsid', 'sleep', '1234'])\ns.run(['sleep', '1234'])" });
    assert_eq!(
        agent.post("/process/code-run", &slow).refusal(),
        (408, "PROCESS_EXECUTION_TIMEOUT".to_owned())
    );
    assert_eq!(agent.descendants_with("sleep 1234"), [0_u32; 0]);
    for wrong in [
        json!({ "language": "cobol", "code": "x" }),
        json!({ "language": "python", "code": " " }),
        json!({ "language": "python", "code": "x", "envs": { "1": "" } }),
        json!({ "language": "python", "code": "x", "timeout": -1 }),
        json!({ "language": "python", "code": "x", "argv": vec!["x"; 100_000] }),
    ] {
        assert_eq!(agent.post("/process/code-run", &wrong).refusal().0, 400);
    }
}

#[test]
fn node_runs_javascript_and_typescript() {
    if !has("node") {
        return;
    }
    let agent = Agent::start(None);
    let code = "'use strict'\nconsole.log(process.argv.slice(1).join(), process.env.A, (() => this)() === undefined)";
    assert_eq!(run(&agent, "javascript", code).1, "one,two words b false\n");
    assert_eq!(run(&agent, "javascript", "#!/usr/bin/env node\nprocess.exit(4)"), (4, String::new()));
    let (status, text) = run(&agent, "javascript", "\nthrow new Error('no')");
    assert!(status == 1 && text.contains("[stdin]:2"), "{text}");
    // Something here that translates, or words that help.
    let (status, text) =
        run(&agent, "typescript", "const n: number = 5\nconsole.log(process.argv[2], n as unknown)");
    assert!(
        (status == 0 && text == "two words 5\n") || (status == 1 && text.contains("npm install -g esbuild")),
        "{text}"
    );
}

#[test]
fn a_missing_interpreter_is_told_with_its_remedy() {
    let agent = Agent::start(None);
    let nothing = json!({ "set": { "PATH": "/nosuch" } });
    assert_eq!(agent.post("/env", &nothing).status, 200);
    for (language, package) in [("python", "python3"), ("javascript", "nodejs"), ("typescript", "nodejs")] {
        let (status, text) = run(&agent, language, "1");
        assert!(status == -1 && text.contains(&format!("apt-get install {package}")), "{text}");
    }
    assert_eq!(agent.post("/process/interpreter/context", &json!({})).refusal().0, 503);
    let (frames, close, reason) = execute(&agent, &json!({ "code": "1" }));
    assert!(frames.is_empty() && close == 1011 && reason.contains("apt-get install python3"), "{reason}");
}

#[test]
fn figures_come_as_data() {
    let here =
        Command::new("python3").args(["-c", "import matplotlib"]).env("PATH", "/usr/bin:/bin").output();
    if !here.is_ok_and(|output| output.status.success()) {
        eprintln!("SKIPPED: python3 here has no matplotlib");
        return;
    }
    let agent = Agent::start(None);
    let code = "import matplotlib.pyplot as plt\nplt.bar(['a', 'b'], [1.5, 2], label='g')\nplt.title('t')\nprint('x')";
    let reply: CodeRunReply =
        agent.post("/process/code-run", &json!({ "language": "python", "code": code })).json();
    assert_eq!((reply.exit_code, reply.result.as_str()), (0, "x\n"));
    let charts = reply.artifacts.expect("artifacts").charts;
    assert_eq!((charts.len(), charts[0].kind, charts[0].title.as_str()), (1, ChartKind::Bar, "t"));
    assert!(charts[0].png.starts_with("iVBORw0KGgo"));
    let second = &charts[0].elements[1];
    assert_eq!(
        (second.label.as_deref(), second.group.as_deref(), second.value.as_deref()),
        (Some("b"), Some("g"), Some("2"))
    );
    assert_eq!(
        charts[0].axes.as_ref().map(|axes| axes.x_tick_labels.clone()),
        Some(vec!["a".into(), "b".into()])
    );
}

/// Frames, close code and reason of one execution.
fn execute(agent: &Agent, request: &Value) -> (Vec<Value>, u16, String) {
    let (mut socket, _) = Socket::connect(agent, "/process/interpreter/execute", "").expect("upgrades");
    socket.send(&request.to_string());
    let (_, frames, close) = socket.finish();
    let reason = String::from_utf8(close[2..].to_vec()).expect("text");
    (frames, u16::from_be_bytes([close[0], close[1]]), reason)
}

/// What a piece of code in a context prints, and its error; it must end well.
fn interpret(agent: &Agent, context: &str, code: &str) -> (String, Option<Value>) {
    let (frames, close, reason) = execute(agent, &json!({ "code": code, "contextId": context }));
    assert_eq!((close, reason.as_str()), (1000, ""), "{frames:?}");
    assert_eq!(frames.last(), Some(&json!({ "type": "control", "text": "completed" })));
    (text_of(&frames), frames.into_iter().find(|frame| frame["type"] == "error"))
}

/// What code printed, piece by piece.
fn text_of(frames: &[Value]) -> String {
    let printed = frames.iter().filter(|frame| frame["type"] == "stdout" || frame["type"] == "stderr");
    printed.map(|frame| frame["text"].as_str().expect("text")).collect()
}

#[test]
fn a_context_keeps_its_state_and_its_secrets() {
    if !has("python3") {
        return;
    }
    let agent = Agent::start(None);
    fs::create_dir(agent.work().join("sub")).expect("create a folder");
    let context: InterpreterContext =
        agent.post("/process/interpreter/context", &json!({ "cwd": "sub" })).json();
    assert!(context.active && context.language == "python");
    let say = |code: &str| interpret(&agent, &context.id, code);
    assert_eq!(say("x = 20\nimport os; print(os.getcwd().rsplit('/', 1)[1])").0, "sub\n");
    assert_eq!(say("print(x + 22)").0, "42\n");
    assert_eq!(interpret(&agent, "", "print('x' in globals())").0, "False\n");
    let (text, error) = say("import sys\nprint('err', file=sys.stderr)\ndef f():\n    return 1 / 0\nf()");
    let error = error.expect("an error");
    assert_eq!((text.as_str(), error["name"].as_str()), ("err\n", Some("ZeroDivisionError")));
    let trace = error["traceback"].as_str().expect("text");
    assert!(trace.contains("line 4, in f\n    return 1 / 0\n") && !trace.contains("/proc"), "{trace}");
    assert_eq!(say("x =").1.expect("an error")["name"], "SyntaxError");
    assert_eq!(say("sys.exit()"), (String::new(), None));
    assert_eq!(say("sys.exit('bye')").1.expect("an error")["value"], "bye");
    assert_eq!(say("os.system('echo child'); print('parent')").0, "child\nparent\n");
    // A copy of the interpreter that comes back from the code does not answer for it.
    assert_eq!(say("pid = os.fork()\nif pid: os.waitpid(pid, 0)").1, None);
    assert_eq!(say("print('still', x)").0, "still 20\n");
    let variable = json!({ "code": "print(os.environ['A'])", "contextId": context.id, "envs": { "A": "b" } });
    assert_eq!(text_of(&execute(&agent, &variable).0), "b\n");
    assert_eq!(say("print('A' in os.environ)").0, "False\n");
    assert_eq!(say("print('ä€😀' * 50_000)").0, format!("{}\n", "ä€😀".repeat(50_000)));
    let died = say("os._exit(3)").1.expect("an error");
    assert!(died["value"].as_str().is_some_and(|text| text.contains("status 3")));
    eventually("a dead interpreter is not active", || {
        !agent.get("/process/interpreter/context").json::<ListContextsReply>().contexts[0].active
    });
    assert_eq!(say("print('x' in globals())").0, "False\n");
}

#[test]
fn code_is_interrupted_by_time_and_by_leaving() {
    if !has("python3") {
        return;
    }
    let agent = Agent::start(None);
    let (_, close, reason) = execute(
        &agent,
        &json!({ "code": "import subprocess\nx = 1\nsubprocess.run(['sleep', '1234'])", "timeout": 1 }),
    );
    assert!(close == 4008 && reason.contains("timeout"), "{close} {reason}");
    assert_eq!(
        agent.descendants_with("sleep 1234"),
        [0_u32; 0],
        "what the code waited for is interrupted, too"
    );
    assert_eq!(interpret(&agent, "", "print(x)").0, "1\n", "an interrupt keeps the state");
    let stubborn = "import subprocess\nwhile True:\n    try:\n        subprocess.run(['sleep', '1234'], start_new_session=True)\n    except KeyboardInterrupt:\n        pass";
    assert_eq!(execute(&agent, &json!({ "code": stubborn, "timeout": 1 })).1, 4008);
    assert_eq!(agent.descendants_with("sleep 1234"), [0_u32; 0]);
    assert_eq!(
        interpret(&agent, "", "print('x' in globals())").0,
        "False\n",
        "who does not stop is replaced"
    );
    let (mut socket, _) = Socket::connect(&agent, "/process/interpreter/execute", "").expect("upgrades");
    socket.send(&json!({ "code": "y = 2\nprint('on')\nsubprocess = __import__('subprocess')\nsubprocess.run(['sleep', '1234'])" }).to_string());
    assert_eq!(socket.receive().0, 1);
    eventually("the code waits", || !agent.descendants_with("sleep 1234").is_empty());
    drop(socket);
    eventually("the code is interrupted", || agent.descendants_with("sleep 1234").is_empty());
    assert_eq!(interpret(&agent, "", "print(y)").0, "2\n");
}

#[test]
fn contexts_end_with_all_that_they_started() {
    if !has("python3") {
        return;
    }
    let agent = Agent::start(None);
    let context: InterpreterContext = agent.post("/process/interpreter/context", &json!({})).json();
    let target = format!("/process/interpreter/context/{}", context.id);
    let (mut socket, _) = Socket::connect(&agent, "/process/interpreter/execute", "").expect("upgrades");
    let code = "import subprocess\nsubprocess.Popen(['sleep', '1234'], start_new_session=True)\nprint('on')\nimport time; time.sleep(1234)";
    socket.send(&json!({ "code": code, "contextId": context.id }).to_string());
    assert_eq!(socket.receive().0, 1);
    assert_eq!(agent.delete(&target).status, 200);
    assert_eq!(agent.descendants_with("sleep 1234"), [0_u32; 0]);
    let (_, frames, close) = socket.finish();
    assert_eq!(frames.last(), Some(&json!({ "type": "control", "text": "interrupted" })));
    assert_eq!(close[..2], 1000_u16.to_be_bytes());
    assert_eq!(agent.delete(&target).refusal(), (404, "PROCESS_NOT_FOUND".to_owned()));
    assert_eq!(agent.delete("/process/interpreter/context/default").refusal().0, 400);
    let (_, close, reason) = execute(&agent, &json!({ "code": "1", "contextId": context.id }));
    assert!(close == 1008 && reason.contains("not found"));
    for wrong in [json!("x"), json!({}), json!({ "code": 1 })] {
        assert_eq!(execute(&agent, &wrong).1, 1003, "{wrong}");
    }
    for wrong in [json!({ "code": "1", "timeout": -1 }), json!({ "code": "1", "envs": { "1": "" } })] {
        assert_eq!(execute(&agent, &wrong).1, 1008, "{wrong}");
    }
    for wrong in [json!({ "language": "r" }), json!({ "cwd": "/nosuch" })] {
        assert_eq!(agent.post("/process/interpreter/context", &wrong).refusal().0, 400, "{wrong}");
    }
}

#[test]
fn code_runs_as_the_workload() {
    if !has("python3") {
        return;
    }
    let Some(agent) = Agent::init(Who::Unprivileged) else { return };
    let code = "import os # pandas\nprint(os.getuid())";
    assert_eq!(run(&agent, "python", code), (0, "1000\n".to_owned()));
    if has("node") {
        assert_eq!(run(&agent, "javascript", "console.log(process.getuid())"), (0, "1000\n".to_owned()));
        let (_, text) = run(&agent, "typescript", "console.log(process.getuid!())");
        assert!(text == "1000\n" || text.contains("npm install"), "{text}");
    }
    assert_eq!(interpret(&agent, "", "import os; print(os.getuid())").0, "1000\n");
}
