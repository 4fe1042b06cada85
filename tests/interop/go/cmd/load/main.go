// franz-go as a producer and a consumer with default settings that go on whatever happens, and tell what came of each
// record (../../../../faults/load.py has the protocol).
//
// Use: load BOOTSTRAP TOPIC PARTITIONS NAME RECORDS_PER_SECOND
package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

var (
	castagnoli = crc32.MakeTable(crc32.Castagnoli)
	output     = bufio.NewWriter(os.Stdout)
	saying     sync.Mutex
)

func say(format string, arguments ...any) {
	saying.Lock()
	defer saying.Unlock()
	fmt.Fprintf(output, format+"\n", arguments...)
	output.Flush()
}

func number(text string) int {
	value, err := strconv.Atoi(text)
	if err != nil {
		panic(err)
	}
	return value
}

func main() {
	seeds, topic, name := kgo.SeedBrokers(strings.Split(os.Args[1], ",")...), os.Args[2], os.Args[4]
	partitions, pause := number(os.Args[3]), time.Second/time.Duration(number(os.Args[5]))
	ctx, stop := context.WithCancel(context.Background())
	go func() {
		io.Copy(io.Discard, os.Stdin)
		stop()
	}()
	var reading sync.WaitGroup
	reading.Add(1)
	go func() {
		defer reading.Done()
		read(ctx, seeds, topic, name)
	}()
	produce(ctx, seeds, topic, partitions, name, pause)
	reading.Wait()
	say("end")
}

func produce(ctx context.Context, seeds kgo.Opt, topic string, partitions int, name string, pause time.Duration) {
	producer, err := kgo.NewClient(seeds, kgo.RecordPartitioner(kgo.ManualPartitioner()))
	if err != nil {
		say("e producer: %v", err)
		return
	}
	defer producer.Close()
	for sent := 0; ctx.Err() == nil; sent++ {
		sent, partition := sent, int32(sent%partitions)
		key := fmt.Appendf(nil, "%s/%d", name, sent)
		value := bytes.Repeat(append(bytes.Clone(key), ';'), sent%40+1)
		say("s %d %d", partition, sent)
		record := &kgo.Record{Topic: topic, Partition: partition, Key: key, Value: value}
		producer.Produce(context.Background(), record, func(done *kgo.Record, err error) {
			if err != nil {
				say("e %d: %v", sent, err)
			} else {
				say("a %d %d %d", done.Partition, sent, done.Offset)
			}
		})
		time.Sleep(pause)
	}
	if err := producer.Flush(context.Background()); err != nil {
		say("e producer: %v", err)
	}
}

func read(ctx context.Context, seeds kgo.Opt, topic, group string) {
	consumer, err := kgo.NewClient(seeds, kgo.ConsumerGroup(group), kgo.ConsumeTopics(topic))
	if err != nil {
		say("e consumer: %v", err)
		return
	}
	defer consumer.Close()
	for ctx.Err() == nil {
		fetches := consumer.PollFetches(ctx)
		fetches.EachError(func(_ string, partition int32, err error) {
			var session *kgo.ErrGroupSession // for information: it joins again by itself
			if ctx.Err() == nil && !errors.As(err, &session) {
				say("e consumer of %d: %v", partition, err)
			}
		})
		fetches.EachRecord(func(record *kgo.Record) {
			digest := crc32.Update(crc32.Checksum(record.Key, castagnoli), castagnoli, record.Value)
			say("r %d %d %s %d", record.Partition, record.Offset, record.Key, digest)
		})
	}
}
