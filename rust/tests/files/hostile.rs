use std::path::Path;

use dsarch::checkpoint::Weights;
use dsarch::safetensors::SafeTensors;

use crate::make::{file, sound};

fn cause(bytes: Vec<u8>) -> String {
    SafeTensors::parse(bytes).expect_err("a broken file").to_string()
}

fn one(entry: &str, data: &[u8]) -> String {
    cause(file(&format!("{{\"x\":{entry}}}"), data))
}

fn says(found: &str, part: &str) {
    assert!(found.contains(part), "{found:?} does not say {part:?}");
}

#[test]
fn a_sound_file_is_read() {
    let found = SafeTensors::parse(sound()).expect("a sound file");
    let a = found.tensor("a").expect("a");
    assert_eq!((a.shape, a.data), (vec![2, 1], vec![1.5, -2.0]));
    let b = found.tensor("b").expect("b");
    assert_eq!((b.shape, b.data), (vec![3], vec![1.0, -3.140625, 0.0]));
}

#[test]
fn a_missing_tensor_is_named() {
    let found = SafeTensors::parse(sound()).expect("a sound file");
    let cause = found.tensor("c").expect_err("no c").to_string();
    says(&cause, "missing c");
}

#[test]
fn lengths_that_lie_are_refused() {
    says(&cause(Vec::new()), "too few");
    says(&cause(vec![1, 2, 3]), "too few");
    for length in [0, 1, 15, 1 << 40, u64::MAX] {
        let mut bytes = length.to_le_bytes().to_vec();
        bytes.extend_from_slice(b"{}            ");
        says(&cause(bytes), "a header of");
    }
    let huge = file(&" ".repeat(10_000_001), &[]);
    says(&cause(huge), "a header of 10000001");
}

#[test]
fn headers_that_are_no_object_are_refused() {
    says(&cause(file("[]", &[])), "no JSON object");
    says(&cause(file("{}x", &[])), "more text");
    says(&cause(file(r#"{"x":1}"#, &[])), "no valid dtype");
    let mut bytes = file("{\"??\":1}", &[]);
    bytes[10] = 0xFF;
    says(&cause(bytes), "UTF-8");
    let deep = "[".repeat(100_000);
    says(&cause(file(&deep, &[])), "nested too deeply");
    let twice = r#"{"x":1,"x":2}"#;
    says(&cause(file(twice, &[])), "twice");
}

#[test]
fn shapes_that_do_not_fill_their_span_are_refused() {
    let entry = |shape: &str, span: &str| {
        format!(r#"{{"dtype":"F32","shape":{shape},"data_offsets":{span}}}"#)
    };
    let fill = "does not fill";
    says(&one(&entry("[3]", "[0,8]"), &[0; 8]), fill);
    says(&one(&entry("[2]", "[8,0]"), &[0; 8]), fill);
    let large = "[4294967296,4294967296,2]";
    says(&one(&entry(large, "[0,8]"), &[0; 8]), fill);
    says(&one(&entry("[-2]", "[0,8]"), &[0; 8]), "no valid shape");
    says(&one(&entry("[1.5]", "[0,6]"), &[0; 6]), "no valid shape");
    says(&one(&entry("[2]", "[0,8,9]"), &[0; 8]), "no valid data_offsets");
    says(&one(&entry("[2]", "[0,1e300]"), &[0; 8]), "no valid data_offsets");
    // A terabyte that the file does not hold is never allocated.
    let far = entry("[250000000000]", "[0,1000000000000]");
    says(&one(&far, &[0; 8]), "8 bytes of data");
}

#[test]
fn spans_that_overlap_or_leave_gaps_are_refused() {
    let two = |first: &str, second: &str| {
        let entry = |span: &str| {
            format!(r#"{{"dtype":"U8","shape":[4],"data_offsets":{span}}}"#)
        };
        let (x, y) = (entry(first), entry(second));
        cause(file(&format!("{{\"x\":{x},\"y\":{y}}}"), &[0; 8]))
    };
    says(&two("[0,4]", "[2,6]"), "begin at 2, expected 4");
    says(&two("[0,4]", "[5,9]"), "begin at 5, expected 4");
    says(&two("[1,5]", "[5,9]"), "begin at 1, expected 0");
    says(&two("[0,4]", "[0,4]"), "begin at 0, expected 4");
}

#[test]
fn types_are_checked_when_read_and_when_used() {
    let odd = r#"{"dtype":"F4","shape":[8],"data_offsets":[0,8]}"#;
    says(&one(odd, &[0; 8]), "unknown type F4");
    let header = r#"{"x":{"dtype":"I64","shape":[1],"data_offsets":[0,8]}}"#;
    let read = SafeTensors::parse(file(header, &[0; 8])).expect("sound");
    let cause = read.tensor("x").expect_err("whole numbers").to_string();
    says(&cause, "has type I64, expected F32 or BF16");
}

#[test]
fn a_weight_of_another_shape_or_name_is_refused() {
    let path = std::env::temp_dir().join("dsarch-weights.safetensors");
    std::fs::write(&path, sound()).expect("a temporary file");
    let mut weights = Weights::open(&path).expect("a sound file");
    let cause = weights.take("a", &[1, 2]).expect_err("a shape").to_string();
    says(&cause, "a has shape [2, 1], expected [1, 2]");
    let cause = weights.at("layer").take("a", &[1]).expect_err("a name");
    says(&cause.to_string(), "missing layer.a");
    let cause = weights.done().expect_err("a rest").to_string();
    says(&cause, "unexpected b");
    std::fs::remove_file(&path).expect("a temporary file");
}

#[test]
fn values_that_are_not_finite_are_refused() {
    let path = std::env::temp_dir().join("dsarch-nan.safetensors");
    let header = r#"{"x":{"dtype":"BF16","shape":[1],"data_offsets":[0,2]}}"#;
    std::fs::write(&path, file(header, &[0xC0, 0x7F])).expect("a file");
    let cause = Weights::open(&path).expect_err("a NaN").to_string();
    says(&cause, "x holds values not finite");
    std::fs::remove_file(&path).expect("a temporary file");
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let nowhere = Path::new("/nowhere/model.safetensors");
    let cause = Weights::open(nowhere).expect_err("no file").to_string();
    says(&cause, "/nowhere/model.safetensors");
}

/// A folder with an index that places two tensors of the sound file.
fn sharded(name: &str, places: [&str; 2]) -> String {
    let folder = std::env::temp_dir().join(format!("dsarch-{name}"));
    let entry = |(name, file)| format!("\"{name}\":\"{file}\"");
    let map: Vec<String> =
        ["a", "b"].into_iter().zip(places).map(entry).collect();
    let index = format!("{{\"weight_map\":{{{}}}}}", map.join(","));
    std::fs::create_dir_all(&folder).expect("a folder");
    let write = |file: &str, bytes: &[u8]| {
        std::fs::write(folder.join(file), bytes).expect("a file");
    };
    write("model.safetensors.index.json", index.as_bytes());
    write("one.safetensors", &sound());
    write("two.safetensors", &sound());
    let read = Weights::open_folder(&folder);
    std::fs::remove_dir_all(&folder).expect("a folder");
    read.map_or_else(|x| x.to_string(), |_| "read".to_string())
}

#[test]
fn an_index_names_files_of_its_folder_and_no_tensor_twice() {
    let one = "one.safetensors";
    assert_eq!(sharded("sound", [one, one]), "read");
    says(&sharded("twice", [one, "two.safetensors"]), "is in two files");
    says(&sharded("gone", [one, "three.safetensors"]), "three.safetensors");
    says(&sharded("outside", [one, "../one.safetensors"]), "places b in");
    says(&sharded("other", [one, "weights.bin"]), "places b in");
}
