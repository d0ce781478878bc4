//! Many small damages to a sound file: whatever comes of it, no panic.

use std::fs;
use std::path::Path;

use dsarch::checkpoint::Weights;
use dsarch::generate::generate;
use dsarch::json::Json;
use dsarch::safetensors::SafeTensors;
use dsarch::sampling::Sampling;
use dsarch::{Config, DeepSeek, Result, Tensor};

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

/// Two tokens from a checkpoint as its bytes tell.
fn write(config: &[u8], weights: Vec<u8>) -> Result<Tensor<usize>> {
    let config = Json::parse(&String::from_utf8_lossy(config))?;
    let cfg = Config::from_hf(&config)?;
    let weights = Weights::read(&[SafeTensors::parse(weights)?])?;
    let model = DeepSeek::load(cfg, weights)?;
    let prompt = Tensor::new(&[1, 9], (0..9).collect());
    generate(&model, &prompt, 2, Sampling::greedy(), None)
}

#[test]
fn damaged_checkpoints_are_refused_or_write_something() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = root.join("../tests/golden/model");
    let read = |name: &str| fs::read(folder.join(name)).expect("a file");
    let (config, weights) = (read("config.json"), read("model.safetensors"));
    assert!(write(&config, weights.clone()).is_ok());
    let (mut dice, mut refused) = (Lcg(3), 0);
    for round in 0..2000 {
        let (mut config, mut weights) = (config.clone(), weights.clone());
        match round % 4 {
            0 => {
                let mut header = weights[..16_000].to_vec();
                damage(&mut header, &mut dice);
                weights.splice(..16_000, header);
            }
            _ => damage(&mut config, &mut dice),
        }
        refused += usize::from(write(&config, weights).is_err());
    }
    assert!(refused > 1000 && refused < 2000, "{refused} refused");
}
