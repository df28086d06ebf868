"""The page: tabs over what is explored."""

from __future__ import annotations

import os

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read on import; it also turns the version check off

import gradio as gr

from commands.app import codes, edit, generate, reconstruct
from commands.app.explored import Explored

STYLE = """
.gradio-container { max-width: 1100px !important; }
.figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(120px, 28%), 1fr)); gap: 8px; }
.figures figure { margin: 0; text-align: center; overflow-wrap: anywhere; }
.figures img { width: 100%; margin: 0; image-rendering: pixelated; }
@media (max-width: 500px) { /* all four tabs fit */
  .gradio-container .app { padding: 8px 12px !important; }
  .tab-container button { padding-inline: 8px !important; }
}
"""
FONTS = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}  # none is fetched


def build(explored: Explored) -> gr.Blocks:
    """Build the page; tabs that do not apply are left out."""
    pipeline = explored.pipeline
    with gr.Blocks(title="Polytoken", analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        gr.Markdown(f"# Polytoken\n{describe(explored)}")
        if explored.note:
            gr.Markdown(explored.note)
        reconstruct.add(explored, page)
        if explored.tokenizer.spec is not None:
            edit.add(explored, page)
            codes.add(explored, page)
        if pipeline is not None:
            generate.add(explored, pipeline)
    return page


def describe(explored: Explored) -> str:
    """One sentence on tokenizer and generator."""
    tokenizer, pipeline = explored.tokenizer, explored.pipeline
    if tokenizer.spec is None:
        shape = "latents of " + " × ".join(map(str, tokenizer.latent_shape))
    else:
        spec = tokenizer.spec
        shape = f"{spec.num_positions} positions × {spec.num_sub_codes} sub-codes, {spec.bits_per_image:,.0f} bits"
    text = f"`{explored.name}`: {type(tokenizer).__name__}, {tokenizer.image_size} pixels, {shape} an image"
    if pipeline is not None:
        text += f". `{pipeline.origin['generator']['run']}`: {type(pipeline.network).__name__}"
    return f"{text}."


def launch(page: gr.Blocks, host: str, port: int, block: bool = True) -> str:
    """Serve the page; returns its address. Nothing is fetched from or sent to other hosts."""
    _, address, _ = page.launch(
        server_name=host,
        server_port=port,
        share=False,
        quiet=True,
        prevent_thread_lock=not block,
        show_error=True,
        ssr_mode=False,
        mcp_server=False,
        pwa=False,
        enable_monitoring=False,
        max_file_size="50mb",
        footer_links=[],
        theme=gr.themes.Base(**FONTS),
        head=f"<style>{STYLE}</style>",  # Gradio applies css to the contents of the page alone
    )
    return address
