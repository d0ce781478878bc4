//! The command line as a reader calls it.

use std::process::{Command, Output};

const TINY: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/../weights/tiny-pretrained");

fn dsarch(words: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dsarch"));
    command.args(words).output().expect("the program")
}

fn says(words: &[&str]) -> String {
    let output = dsarch(words);
    assert!(output.status.success(), "{words:?} failed");
    String::from_utf8(output.stdout).expect("UTF-8")
}

fn refuses(words: &[&str], part: &str) {
    let output = dsarch(words);
    let cause = String::from_utf8(output.stderr).expect("UTF-8");
    assert_eq!(output.status.code(), Some(1), "{words:?}");
    assert!(cause.contains(part), "{cause:?} does not say {part:?}");
}

#[test]
fn bytes_per_token_of_the_released_models() {
    for (model, bytes) in
        [("v2-lite", 31_104), ("v2", 69_120), ("v3", 70_272), ("v3.2", 85_888)]
    {
        let expected = format!("{bytes} bytes per token\n");
        assert_eq!(says(&["kv", model]), expected);
    }
    assert_eq!(says(&["kv", TINY]), "320 bytes per token\n");
}

#[test]
fn a_number_in_every_format() {
    let expected = "\
e4m3 0x2A 00101010 0.3125 +1.2500e-2
e5m2 0x35 00110101 0.3125 +1.2500e-2
e5m6 0x34D 001101001101 0.30078125 +7.8125e-4
ue8m0 0x7E 01111110 0.5 +2.0000e-1
";
    assert_eq!(says(&["fp8", "0.3"]), expected);
    let said = says(&["fp8", "-1000"]);
    assert!(said.starts_with("e4m3 0xFE 11111110 -448 +5.5200e2\n"), "{said}");
    assert!(said.ends_with("ue8m0 0xFF 11111111 NaN NaN\n"), "{said}");
    refuses(&["fp8", "much"], "no number");
}

#[test]
fn text_with_and_without_drafts() {
    let plain = says(&["generate", TINY, "The tall fox ", "20"]);
    assert!(plain.starts_with("The tall fox "));
    assert_eq!(plain.trim_end_matches('\n').len(), 33);
    let words = ["generate", TINY, "The tall fox ", "20", "--speculative"];
    assert_eq!(says(&words), plain);
    let none = says(&["generate", TINY, "ü", "0"]);
    assert_eq!(none, "ü\n");
}

#[test]
fn a_clock_tells_seconds() {
    let said = says(&["bench", TINY, "The ", "2"]);
    let seconds: f64 =
        said.split(' ').next().expect("a number").parse().expect("a number");
    assert!(seconds > 0.0);
}

#[test]
fn mistakes_are_explained() {
    refuses(&[], "usage");
    refuses(&["kv"], "usage");
    refuses(&["generate", TINY, "a", "many"], "usage");
    refuses(&["generate", TINY, "a", "1", "2"], "usage");
    refuses(&["generate", TINY, ""], "the prompt is empty");
    refuses(&["generate", "/nowhere", "a"], "/nowhere");
    refuses(&["kv", "v9"], "v9");
}
