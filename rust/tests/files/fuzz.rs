//! Many small damages to a sound file: whatever comes of it, no panic.

use dsarch::json::Json;
use dsarch::safetensors::SafeTensors;

use crate::make::{sound, Lcg};

const ROUNDS: usize = 100_000;

/// One to four bytes changed, dropped, doubled, or the end cut off.
fn damage(bytes: &mut Vec<u8>, dice: &mut Lcg) {
    for _ in 0..=dice.below(4) {
        if bytes.is_empty() {
            return;
        }
        let place = dice.below(bytes.len());
        match dice.below(5) {
            0 => bytes[place] = dice.below(256) as u8,
            1 => bytes[place] ^= 1 << dice.below(8),
            2 => drop(bytes.remove(place)),
            3 => bytes.insert(place, bytes[place]),
            _ if dice.below(8) == 0 => bytes.truncate(place),
            _ => bytes[place] = b"0123456789[]{},:\"\\-eu"[dice.below(21)],
        }
    }
}

#[test]
fn damaged_files_give_errors_or_tensors_of_their_size() {
    let (mut dice, mut refused) = (Lcg(1), 0);
    for _ in 0..ROUNDS {
        let mut bytes = sound();
        damage(&mut bytes, &mut dice);
        let size = bytes.len();
        let read = match SafeTensors::parse(bytes) {
            Ok(read) => read,
            Err(cause) => {
                assert!(!cause.to_string().is_empty());
                refused += 1;
                continue;
            }
        };
        for name in read.entries.keys() {
            if let Ok(x) = read.tensor(name) {
                assert!(2 * x.data.len() <= size);
            }
        }
    }
    // Damage to a value of the data is no damage to the file.
    assert!(refused > ROUNDS / 2 && refused < ROUNDS, "{refused} refused");
}

#[test]
fn damaged_json_is_parsed_or_refused() {
    let text = r#"{"a":[1,-2.5e3,{"b":null}],"ü\ud83d\ude00":[true,"\n"]}"#;
    assert!(Json::parse(text).is_ok());
    let (mut dice, mut refused) = (Lcg(2), 0);
    for _ in 0..ROUNDS {
        let mut bytes = text.as_bytes().to_vec();
        damage(&mut bytes, &mut dice);
        let text = String::from_utf8_lossy(&bytes);
        refused += usize::from(Json::parse(&text).is_err());
    }
    assert!(refused > ROUNDS / 2 && refused < ROUNDS, "{refused} refused");
}
