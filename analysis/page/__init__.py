"""What serves the page, without Gradio: sessions, boards, events, links, lessons, exports."""
