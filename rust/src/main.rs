//! The command line: `dsarch kv v3`, `dsarch generate <folder> <prompt>`.

use std::env;
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use dsarch::error::{error, Result};
use dsarch::generate::{decode, generate};
use dsarch::sampling::Sampling;
use dsarch::{tokenizer, Config, DeepSeek, Tensor};

const USAGE: &str = "\
usage: dsarch kv <v2-lite|v2|v3|v3.2|folder>
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
