// Builds examples/whois-kind as an extension's team would: separately, against the built program as an installed package.
import { spawnSync } from 'node:child_process';
import { mkdirSync, rmSync, symlinkSync } from 'node:fs';

const EXAMPLE = 'examples/whois-kind';
const INSTALLED = `${EXAMPLE}/node_modules/dns-agent-control-plane`;

mkdirSync(`${EXAMPLE}/node_modules`, { recursive: true });
rmSync(INSTALLED, { force: true });
symlinkSync('../../..', INSTALLED, 'dir');
const { status } = spawnSync('npm', ['run', '--silent', 'build'], { cwd: EXAMPLE, stdio: 'inherit' });
process.exitCode = status ?? 1;
