"""Chat templates of a dozen families, rebuilt in small: what they make of turns and of thoughts.

Written for these tests after reading the official ones; each keeps its family's structure (what is
written in front of an answer, what is dropped from earlier ones, where a system message goes, what
is refused) and nothing of tools, dates or documents. `benchmarks/official_templates.py` runs the
encoder on official ones.
"""

# Earlier thoughts are dropped; the last answer gets one, be it empty.
_LAST_USER = (
    "{% set ns = namespace(last=-1) %}{% for m in messages %}"
    "{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
)
_SPLIT = (
    "{% set words = m.content %}{% set thought = m.reasoning_content or '' %}"
    "{% if '</think>' in words and not thought %}"
    "{% set thought = words.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{% set words = words.split('</think>')[-1].lstrip('\n') %}{% endif %}"
)
QWEN3 = (
    _LAST_USER + "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.role == 'assistant' %}" + _SPLIT + "{% if loop.index0 > ns.last %}"
    "{{ '<think>\n' + thought.strip('\n') + '\n</think>\n\n' }}{% endif %}{{ words }}"
    "{% else %}{{ m.content }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# As Qwen3, and the generation prompt opens the thought (3.5 and 3.6), or closes an empty one.
QWEN35 = QWEN3.replace("'<|im_start|>assistant\n' }}", "'<|im_start|>assistant\n<think>\n' }}")
QWEN35_SMALL = QWEN3.replace(
    "'<|im_start|>assistant\n' }}", "'<|im_start|>assistant\n<think>\n\n</think>\n\n' }}"
)
# Every answer has a thought, earlier ones an empty one; no token ends an answer.
GLM45 = (
    "[gMASK]<sop>" + _LAST_USER + "{% for m in messages %}{{ '<|' + m.role + '|>' }}"
    "{% if m.role == 'assistant' %}" + _SPLIT + "{{ '\n<think>' }}"
    "{% if loop.index0 > ns.last %}{{ thought.strip() }}{% endif %}"
    "{{ '</think>\n' + words.strip() }}{% else %}{{ '\n' + m.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
# Channels; the last answer ends with another token than earlier ones, whose thoughts are dropped.
GPT_OSS = (
    "{{ '<|start|>system<|message|>Channels: analysis, final.<|end|>' }}{% for m in messages %}"
    "{% if m.role == 'system' %}{{ '<|start|>developer<|message|>' + m.content + '<|end|>' }}"
    "{% elif m.role == 'user' %}{{ '<|start|>user<|message|>' + m.content + '<|end|>' }}"
    "{% elif loop.last and not add_generation_prompt %}{% if 'thinking' in m %}"
    "{{ '<|start|>assistant<|channel|>analysis<|message|>' + m.thinking + '<|end|>' }}{% endif %}"
    "{{ '<|start|>assistant<|channel|>final<|message|>' + m.content + '<|return|>' }}"
    "{% else %}{{ '<|start|>assistant<|channel|>final<|message|>' + m.content + '<|end|>' }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"
)
# Answers without a thought get an empty one in one line; the prompt opens it with a line break.
NEMOTRON3 = (
    _LAST_USER + "{{ '<|im_start|>system\n' }}{% if messages[0].role == 'system' %}"
    "{{ messages[0].content }}{% endif %}{{ '<|im_end|>\n' }}"
    "{% for m in messages if m.role != 'system' %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% set words = m.content %}{% if m.role == 'assistant' %}{% if m.reasoning_content %}"
    "{% set words = '<think>\n' + m.reasoning_content + '\n</think>\n' + words %}"
    "{% elif '</think>' not in words %}{% set words = '<think></think>' + words %}{% endif %}"
    "{% if not loop.last %}"
    "{% set words = '<think></think>' + words.split('</think>')[-1].strip() %}"
    "{% endif %}{% endif %}{{ words.strip() + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"
)
# The prompt opens a thought that no answer shows again, the last one included.
DEEPSEEK_R1 = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}"
    "{% elif m.role == 'user' %}{{ '<|User|>' + m.content }}{% else %}"
    "{{ '<|Assistant|>' + m.content.split('</think>')[-1] + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|Assistant|><think>\n' }}{% endif %}"
)
# The prompt writes an empty channel of thought that no answer shows.
GEMMA4 = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<|turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' }}"
    "{{ m.content.strip() + '<turn|>\n' }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|turn>model\n<|channel>thought\n<channel|>' }}{% endif %}"
)
LLAMA31 = (
    "{{ bos_token + '<|start_header_id|>system<|end_header_id|>\n\nToday Date: 26 Jul 2024\n\n' }}"
    "{% if messages[0].role == 'system' %}{{ messages[0].content.strip() }}"
    "{% set messages = messages[1:] %}{% endif %}{{ '<|eot_id|>' }}{% for m in messages %}"
    "{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content.strip() }}"
    "{{ '<|eot_id|>' }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
# No system role; the assistant is called model.
GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}{% for m in messages %}"
    "{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' }}"
    "{{ m.content.strip() + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
# The system message stands in the first user turn, or in the last.
GEMMA3 = (
    "{{ bos_token }}{% set lead = '' %}{% if messages[0].role == 'system' %}"
    "{% set lead = messages[0].content + '\n\n' %}{% set messages = messages[1:] %}{% endif %}"
    "{% for m in messages %}"
    "{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' }}"
    "{{ (lead if loop.first else '') + m.content.strip() + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
MISTRAL_LAST = (
    _LAST_USER + "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' }}"
    "{% if loop.index0 == ns.last and messages[0].role == 'system' %}"
    "{{ messages[0].content + '\n\n' }}{% endif %}{{ m.content + '[/INST]' }}"
    "{% elif m.role == 'assistant' %}{{ ' ' + m.content.strip() + eos_token }}{% endif %}"
    "{% endfor %}"
)
MISTRAL = MISTRAL_LAST.replace("loop.index0 == ns.last", "loop.index0 == 1")
PHI3 = (
    "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}"
    "{{ '<|assistant|>\n' if add_generation_prompt else eos_token }}"
)
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SMOLLM2 = (
    "{% if messages[0].role != 'system' %}"
    "{{ '<|im_start|>system\nYou are a default.<|im_end|>\n' }}{% endif %}" + CHATML
)
# A mode of thinking that the system message turns off, for the prompt and for all answers.
SMOLLM3 = (
    "{% set quiet = messages[0].role == 'system' and '/no_think' in messages[0].content %}"
    "{% set empty = '<think>\n\n</think>\n\n' if quiet else '' %}"
    "{{ '<|im_start|>system\nMode: ' + ('/no_think' if quiet else '/think') + '\n' }}"
    "{% if messages[0].role == 'system' %}{{ messages[0].content.replace('/no_think', '') }}"
    "{% set messages = messages[1:] %}{% endif %}{{ '<|im_end|>\n' }}{% for m in messages %}"
    "{{ '<|im_start|>' + m.role + '\n' + (empty if m.role == 'assistant' else '') }}"
    "{{ m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' + empty }}{% endif %}"
)
COMMAND_R = (
    "{{ bos_token }}{% for m in messages %}{{ '<|START_OF_TURN_TOKEN|>' }}"
    "{% if m.role == 'assistant' %}{{ '<|CHATBOT_TOKEN|><|START_RESPONSE|>' + m.content }}"
    "{{ '<|END_RESPONSE|>' }}{% else %}{{ '<|' + m.role.upper() + '_TOKEN|>' + m.content }}"
    "{% endif %}{{ '<|END_OF_TURN_TOKEN|>' }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|><|START_RESPONSE|>' }}{% endif %}"
)

EOS = {"gpt_oss": "<|return|>", "command_r": "<|END_OF_TURN_TOKEN|>"}
"""The end-of-sequence tokens that are not </s> here."""

FAMILIES: dict[str, str] = {
    name.lower(): value
    for name, value in list(globals().items())
    if name.isupper() and not name.startswith("_") and isinstance(value, str)
}
"""Every template above, by its name in lower case."""
