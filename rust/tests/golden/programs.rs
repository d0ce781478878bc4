use dsarch::pipeline::{
    bubble, dualpipe, dualpipe_v, gpipe, interleaved, one_f_one_b, zero_bubble,
    Schedule,
};
use dsarch::timeline::{simulate, Kind, Program, Times};

use crate::common::Golden;

fn times(golden: &mut Golden) -> Times {
    let [forward, backward, weight, pair] =
        ["forward", "backward", "weight", "pair"].map(|x| golden.cfg(x));
    Times { forward, backward, weight, pair }
}

/// Device, number of the item, kind, stage and micro-batch of each op.
fn table(program: &Program) -> Vec<usize> {
    let mut found = Vec::new();
    for (device, row) in program.iter().enumerate() {
        for (place, item) in row.iter().enumerate() {
            for op in item {
                let kind = match op.kind {
                    Kind::F => 0,
                    Kind::B => 1,
                    Kind::I => 2,
                    Kind::W => 3,
                };
                found.extend([device, place, kind, op.stage, op.micro]);
            }
        }
    }
    found
}

#[test]
fn schedules_op_by_op() {
    use Schedule::{DualPipe, GPipe, OneFOneB, ZeroBubble};
    type Make = fn(usize, usize) -> Program;
    let cases: [(&str, Make, Schedule, &[[usize; 2]]); 5] = [
        ("gpipe", gpipe, GPipe, &[[3, 4]]),
        ("1f1b", one_f_one_b, OneFOneB, &[[4, 6]]),
        ("zero_bubble", zero_bubble, ZeroBubble, &[[4, 6]]),
        ("dualpipe", dualpipe, DualPipe, &[[2, 4], [6, 14], [8, 20]]),
        ("dualpipe_v", dualpipe_v, DualPipe, &[[2, 2], [6, 8], [8, 14]]),
    ];
    let mut golden = Golden::open("programs");
    let times = times(&mut golden);
    for (name, make, schedule, sizes) in cases {
        for &[stages, micros] in sizes {
            let (program, case) =
                (make(stages, micros), format!("out.{name}.{stages}.{micros}"));
            let told = golden.index(&format!("{case}.program")).data;
            assert_eq!(table(&program), told, "{case}");
            let line = simulate(&program, &times, 1.0).expect("no deadlock");
            let found = [
                bubble(schedule, stages, &times),
                line.bubble(),
                line.makespan(),
                line.bubble_share(),
            ];
            let told = golden.tensor(&format!("{case}.times")).data;
            assert_eq!(found.map(|x| x as f32), told[..], "{case}");
        }
    }
}

#[test]
fn chunks_op_by_op() {
    let mut golden = Golden::open("programs");
    let times = times(&mut golden);
    let told = golden.index("out.interleaved.4.8.program").data;
    assert_eq!(table(&interleaved(4, 8, 2)), told);
    let told = golden.tensor("out.interleaved.4.8.times").data;
    assert_eq!(bubble(Schedule::Interleaved(2), 4, &times) as f32, told[0]);
}

#[test]
#[should_panic(expected = "8 stages, 14 micros: both even, at least 16")]
fn too_few_micro_batches_for_both_ends() {
    dualpipe(8, 14);
}

#[test]
#[should_panic(expected = "both even")]
fn an_odd_stage_has_no_partner() {
    dualpipe_v(7, 14);
}
