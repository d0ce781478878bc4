//! The command line: `dsarch kv v3`, `dsarch fp8 0.3`, `dsarch generate ..`.

use std::env;
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use dsarch::error::{error, Result};
use dsarch::fp8::formats::{decode_scale, encode_scale};
use dsarch::fp8::{self, E4M3, E5M2, E5M6};
use dsarch::generate::{decode, generate};
use dsarch::sampling::Sampling;
use dsarch::{tokenizer, Config, DeepSeek, Tensor};

const USAGE: &str = "\
usage: dsarch kv <v2-lite|v2|v3|v3.2|folder>
       dsarch fp8 <value>
       dsarch generate <folder> <prompt> [count] [--speculative]
       dsarch bench <folder> <prompt> [count]";

const COUNT: usize = 64;

fn main() -> ExitCode {
    let words: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match run(&words) {
        Ok(text) => {
            println!("{text}");
            ExitCode::SUCCESS
        }
        Err(cause) => {
            eprintln!("{cause}");
            ExitCode::FAILURE
        }
    }
}

/// What one command answers.
fn run(words: &[&str]) -> Result<String> {
    match words {
        ["kv", model] => kv(model),
        ["fp8", value] => eight_bits(value),
        ["generate", folder, prompt, rest @ ..] => {
            let drafts = rest.contains(&"--speculative").then_some(1);
            let rest = rest.iter().filter(|x| **x != "--speculative");
            let rest: Vec<&str> = rest.copied().collect();
            write(folder, prompt, count(&rest)?, drafts)
        }
        ["bench", folder, prompt, rest @ ..] => {
            bench(folder, prompt, count(rest)?)
        }
        _ => error(USAGE),
    }
}

fn count(rest: &[&str]) -> Result<usize> {
    match rest {
        [] => Ok(COUNT),
        [word] => word.parse().or_else(|_| error(USAGE)),
        _ => error(USAGE),
    }
}

/// Bytes that all layers cache of one token, in bf16.
fn kv(model: &str) -> Result<String> {
    let cfg = match model {
        "v2-lite" => Config::v2_lite(),
        "v2" => Config::v2(),
        "v3" => Config::v3(),
        "v3.2" => Config::v3_2(),
        folder => Config::open(Path::new(folder))?,
    };
    Ok(format!("{} bytes per token", 2 * cfg.kv_elements_per_token()))
}

/// A value in each format: code, bits, what it decodes to, and the error.
fn eight_bits(word: &str) -> Result<String> {
    let wide: f64 = match word.parse() {
        Ok(x) => x,
        Err(_) => return error(format!("{word:?} is no number")),
    };
    let x = wide as f32;
    let line = |name: &str, code: u16, width: usize, value: f32| {
        let digits = (width + 3) / 4 + 2;
        let error = f64::from(value) - wide;
        let bits = format!("{code:#0digits$X} {code:0width$b}");
        format!("{name} {bits} {value} {error:+.4e}")
    };
    let formats = [("e4m3", E4M3, 8), ("e5m2", E5M2, 8), ("e5m6", E5M6, 12)];
    let mut lines = Vec::new();
    for (name, format, width) in formats {
        let code = fp8::encode(x, format);
        lines.push(line(name, code, width, fp8::decode(code, format)));
    }
    let code = encode_scale(x);
    lines.push(line("ue8m0", u16::from(code), 8, decode_scale(code)));
    Ok(lines.join("\n"))
}

fn prompt_of(text: &str) -> Result<Tensor<usize>> {
    let tokens = tokenizer::encode(text);
    if tokens.is_empty() {
        return error("the prompt is empty");
    }
    Ok(Tensor::new(&[1, tokens.len()], tokens))
}

/// The prompt and what the model makes of it.
fn write(
    folder: &str,
    prompt: &str,
    count: usize,
    drafts: Option<usize>,
) -> Result<String> {
    let model = DeepSeek::open(Path::new(folder))?;
    let tokens = prompt_of(prompt)?;
    let greedy = Sampling::greedy();
    let text = generate(&model, &tokens, count, greedy, drafts)?;
    tokenizer::decode(&text.data)
}

/// Seconds for each decoded token, the prompt left out.
fn bench(folder: &str, prompt: &str, count: usize) -> Result<String> {
    let model = DeepSeek::open(Path::new(folder))?;
    let tokens = prompt_of(prompt)?;
    dsarch::generate::check_prompt(&tokens, model.cfg.vocab_size)?;
    let mut run = decode(&model, &tokens, Sampling::greedy());
    run.step()?;
    let start = Instant::now();
    for _ in 0..count {
        run.step()?;
    }
    let seconds = start.elapsed().as_secs_f64() / count.max(1) as f64;
    Ok(format!("{seconds:.9} seconds per token"))
}
