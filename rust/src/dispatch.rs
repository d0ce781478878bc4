//! Send tokens to their experts and add up the answers.
//!
//! Both ways agree to the last bit, because they add in the same order.

use crate::layers::SwiGLU;
use crate::router::Routing;
use crate::tensor::Tensor;

// ANCHOR: dispatch_loop
/// The weighed answers of each token's experts, expert by expert.
///
/// An expert without tokens is not called, a dropped slot adds nothing.
pub fn dispatch_loop(
    x: &Tensor,
    routing: &Routing,
    experts: &[SwiGLU],
) -> Tensor {
    let mut y = Tensor::zeros(&x.shape);
    let (flat, width) = (&routing.experts.data, routing.experts.width());
    for (e, expert) in experts.iter().enumerate() {
        let slots: Vec<usize> =
            (0..flat.len()).filter(|&slot| flat[slot] == e).collect();
        if slots.is_empty() {
            continue;
        }
        let token: Vec<usize> = slots.iter().map(|slot| slot / width).collect();
        let out = expert.forward(&x.index_select(&token));
        add_weighed(&mut y, &out, &slots, routing);
    }
    y
}
// ANCHOR_END: dispatch_loop

// ANCHOR: dispatch_grouped
/// The same sum with slots sorted by expert: one gathering of tokens, one
/// slice of it for each expert, one addition of all answers.
pub fn dispatch_grouped(
    x: &Tensor,
    routing: &Routing,
    experts: &[SwiGLU],
) -> Tensor {
    let (flat, width) = (&routing.experts.data, routing.experts.width());
    let mut order: Vec<usize> =
        (0..flat.len()).filter(|&slot| flat[slot] < experts.len()).collect();
    order.sort_by_key(|&slot| flat[slot]);
    let token: Vec<usize> = order.iter().map(|slot| slot / width).collect();
    let gathered = x.index_select(&token);
    let mut answers = Tensor::zeros(&[0, x.width()]);
    let mut end = 0;
    while end < order.len() {
        let (start, e) = (end, flat[order[end]]);
        end += order[start..].iter().take_while(|&&s| flat[s] == e).count();
        let out = experts[e].forward(&gathered.slice(0, start..end));
        answers.data.extend(out.data);
    }
    answers.shape[0] = end;
    let mut y = Tensor::zeros(&x.shape);
    add_weighed(&mut y, &answers, &order, routing);
    y
}
// ANCHOR_END: dispatch_grouped

/// Add each answer to its slot's token, times the slot's weight.
fn add_weighed(y: &mut Tensor, out: &Tensor, slots: &[usize], by: &Routing) {
    let (d, k) = (y.width(), by.experts.width());
    for (answer, &slot) in out.rows().zip(slots) {
        let weight = by.weights.data[slot];
        let row = &mut y.data[slot / k * d..][..d];
        row.iter_mut().zip(answer).for_each(|(y, x)| *y += weight * x);
    }
}
