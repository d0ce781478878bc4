use dsarch::json::Json;

fn text(source: &str) -> String {
    match Json::parse(source) {
        Ok(Json::Text(x)) => x,
        other => panic!("{source} gave {other:?}"),
    }
}

#[test]
fn values_of_every_kind() {
    let source = r#" { "a" : [ 1 , -2.5e1 , true , null ] , "b" : { } } "#;
    let found = Json::parse(source).expect("JSON");
    let list = vec![
        Json::Number(1.0),
        Json::Number(-25.0),
        Json::Bool(true),
        Json::Null,
    ];
    assert_eq!(found.get("a"), Some(&Json::List(list)));
    assert_eq!(found.get("b"), Some(&Json::Object(Vec::new())));
    assert_eq!(found.get("c"), None);
}

#[test]
fn escapes() {
    assert_eq!(text(r#""\"\\\/\b\f\n\r\t""#), "\"\\/\x08\x0c\n\r\t");
    assert_eq!(text(r#""\u00e4 \ud83d\ude00 ö""#), "ä 😀 ö");
}

#[test]
fn what_is_no_json_is_refused() {
    let broken = [
        "",
        " ",
        "{",
        "[",
        "[1,",
        "[1 2]",
        "{\"a\"}",
        "{\"a\":}",
        "{a:1}",
        "{\"a\":1,}",
        "[1,]",
        "nul",
        "+1",
        "-",
        "1e999",
        "\"",
        "\"\\",
        "\"\\u",
        "\"\\u12\"",
        "\"\\u+123\"",
        "\"\\ud83d\"",
        "\"\\ud83d\\u0041\"",
        "\"\\udc00\"",
        "\"\\x\"",
        "\"\n\"",
        "1 1",
        "{\"a\":1 \"b\":2}",
    ];
    for source in broken {
        assert!(Json::parse(source).is_err(), "{source:?} was accepted");
    }
}

#[test]
fn only_whole_numbers_are_sizes() {
    let whole = |x: &str| Json::parse(x).expect("JSON").whole();
    assert_eq!(whole("7"), Some(7));
    assert_eq!(whole("7.0"), Some(7));
    for other in ["-1", "1.5", "1e300", "true", "\"7\"", "9007199254740993"] {
        assert_eq!(whole(other), None, "{other}");
    }
}
