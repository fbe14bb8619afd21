from agentmesh.cli.app import main

main()
