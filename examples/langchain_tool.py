"""A sandbox as LangChain tools, for any agent or model of LangChain's.

Run by itself it calls the tools as a model would. Give `sandbox_tools(session)` to your own agent instead.
"""

import asyncio
import os

from langchain_core.tools import tool
from sandkasten import SandboxClient


def sandbox_tools(session):
    """Tools that work in this session. Their names, arguments and first lines are what a model sees."""

    @tool
    async def run_command(command: str, timeout_seconds: int = 60) -> str:
        """Run a shell command on a Linux computer. The directory, variables and files stay from call to call."""
        result = await session.exec(command, timeout_ms=timeout_seconds * 1000)
        return f"exit code {result.exit_code}, now in {result.cwd}\n{result.output}"

    @tool
    async def write_file(path: str, content: str) -> str:
        """Write a text file; a relative path is below /workspace."""
        await session.write(path, content)
        return f"wrote {path}"

    @tool
    async def read_file(path: str) -> str:
        """Read a text file; a relative path is below /workspace."""
        return (await session.read(path)).content.decode("utf-8", errors="replace")

    return [run_command, write_file, read_file]


async def main():
    url = os.environ.get("SANDHAUS_URL", "http://localhost:8080")
    key = os.environ.get("SANDHAUS_API_KEY", "")
    async with SandboxClient(base_url=url, api_key=key) as client:
        async with await client.create_session(image="host", ttl_seconds=600) as session:
            tools = {tool.name: tool for tool in sandbox_tools(session)}
            # With a model: create_agent(model, list(tools.values())), or model.bind_tools(list(tools.values())).
            print(await tools["write_file"].ainvoke({"path": "data.txt", "content": "3\n1\n2\n"}))
            print(await tools["run_command"].ainvoke({"command": "sort -n data.txt > sorted.txt && cd /tmp"}))
            print(await tools["run_command"].ainvoke({"command": "pwd"}))
            print(await tools["read_file"].ainvoke({"path": "sorted.txt"}), end="")


asyncio.run(main())
