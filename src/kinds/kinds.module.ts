import { Module } from '@nestjs/common';
import { DiscoveryModule } from '@nestjs/core';
import { DnsKind, HttpKind, PingKind, TcpKind, TraceKind } from './kinds';
import { TaskKinds } from './task-kinds';

/** The registry of task kinds, and the five that are built in. */
@Module({
  imports: [DiscoveryModule],
  providers: [TaskKinds, DnsKind, HttpKind, TcpKind, PingKind, TraceKind],
  exports: [TaskKinds],
})
export class KindsModule {}
