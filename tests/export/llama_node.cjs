// llama.cpp from npm (@fugood/llama.node), called so that it answers exactly.
const path = require("path");
const { loadModel } = require(path.join(process.env.LLAMA_NODE, "@fugood/llama.node"));

const EXACT = {
  n_parallel: 1, n_gpu_layers: 0, use_mmap: false, n_threads: 1,
  cache_type_k: "f32", cache_type_v: "f32", flash_attn_type: "off",
};
// xtc_probability: the package has 0.1 with a threshold of 0, so in a tenth of all steps it would
// write the least likely token that min_p leaves (findings/llama-node-temperature-0-is-not-greedy.sh).
const UNTOUCHED = { penalty_repeat: 1, penalty_freq: 0, penalty_present: 0, xtc_probability: 0 };
const GREEDY = { ...UNTOUCHED, temperature: 0, n_probs: 1 };
const NEUTRAL = { ...UNTOUCHED, temperature: 1, top_k: 0, top_p: 1, min_p: 0, seed: 1, n_probs: 100000 };

const opened = []; // never released: a release may use memory that is freed already

// Opens a model; `complete` returns the package's answer, with `steps`, the probabilities of its own
// tokens. The native method is called, because the package's adds a callback, with which 38 of 40
// processes crashed. A context's list of probabilities begins with those of earlier answers
// (findings/llama-node-context-used-again.sh), and under load the package misses the end of a short
// answer and refuses all further ones: then the model is loaded anew.
async function open({ model, mmproj, size = 256 }) {
  const load = async () => {
    const context = await loadModel({ model, n_ctx: size, ...EXACT });
    if (mmproj) await context.initMultimodal({ path: mmproj, use_gpu: false });
    opened.push(context);
    return context;
  };
  let context = await load();
  let known = 0;
  const ask = async (options) => {
    const found = await context.ctx.completion(options);
    const steps = found.completion_probabilities.slice(known); // the former texts' stay in front
    known += steps.length;
    return { ...found, steps };
  };
  const complete = async (options) => {
    try {
      return await ask(options);
    } catch (error) {
      if (!error.message.includes("Another completion is in progress")) throw error;
      [context, known] = [await load(), 0];
      return ask(options);
    }
  };
  return { context, complete };
}

module.exports = { open, GREEDY, NEUTRAL };
