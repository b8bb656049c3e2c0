"""An agent of the OpenAI Agents SDK whose tools work in a sandbox.

With OPENAI_API_KEY set it asks a model. Without one it calls the tools as a model would, one after the other.
"""

import asyncio
import json
import os

from agents import Agent, Runner
from agents.tool_context import ToolContext
from sandkasten import SandboxClient
from sandkasten.agents import create_sandkasten_tools

TASK = "Write a program that prints the first ten prime numbers, run it, and tell what it printed."

# What a model would ask for.
CALLS = [
    ("sandbox_write_file", {"path": "primes.py", "content": "print([n for n in range(2, 30) if all(n % d for d in range(2, n))])\n"}),
    ("sandbox_exec", {"cmd": "python3 primes.py"}),
    ("sandbox_list_files", {"path": "."}),
]


async def call(tools, name, arguments):
    """Calls a tool as the SDK does when a model asks for it."""
    tool = next(tool for tool in tools if tool.name == name)
    text = json.dumps(arguments)
    context = ToolContext(context=None, tool_name=name, tool_call_id="1", tool_arguments=text)
    return await tool.on_invoke_tool(context, text)


async def main():
    url = os.environ.get("SANDHAUS_URL", "http://localhost:8080")
    key = os.environ.get("SANDHAUS_API_KEY", "")
    async with SandboxClient(base_url=url, api_key=key) as client:
        # The session is the agent's computer; it is deleted when the agent is done.
        async with await client.create_session(image="host", ttl_seconds=600) as session:
            tools = create_sandkasten_tools(session)
            if os.environ.get("OPENAI_API_KEY"):
                agent = Agent(name="programmer", instructions="You have a Linux computer. Use it.", tools=tools)
                print((await Runner.run(agent, TASK)).final_output)
                return
            for name, arguments in CALLS:
                print(f"# {name}")
                print(await call(tools, name, arguments))


asyncio.run(main())
