// Package driver speaks the line protocol of the interop tests (../../README.md) for a Go client.
//
// Always true: one line in, one line out, in order; a client's error travels as text and never ends the process.
package driver

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"runtime/debug"
	"time"
)

// Deadline is how long one call may take.
const Deadline = 30 * time.Second

// Header is one record header.
type Header struct {
	Name  string `json:"name"`
	Value []byte `json:"value"`
}

// Record is one record as produced or as consumed. A null key or value is nil, an empty one is not.
type Record struct {
	Key         []byte   `json:"key"`
	Value       []byte   `json:"value"`
	Headers     []Header `json:"headers"`
	TimestampMs *int64   `json:"timestamp_ms"`
	Partition   int32    `json:"partition"`
	Offset      int64    `json:"offset"`
}

// Request holds the arguments of every call; each call reads its own.
type Request struct {
	Call        string            `json:"call"`
	Bootstrap   string            `json:"bootstrap"`
	Topic       string            `json:"topic"`
	Partition   int32             `json:"partition"`
	Partitions  int32             `json:"partitions"`
	Compression string            `json:"compression"`
	Acks        int               `json:"acks"`
	Idempotent  bool              `json:"idempotent"`
	PauseMs     int               `json:"pause_ms"`
	Records     []Record          `json:"records"`
	Offset      int64             `json:"offset"`
	Count       int               `json:"count"`
	TimestampMs int64             `json:"timestamp_ms"`
	Configs     map[string]string `json:"configs"`
	Group       string            `json:"group"`
	Assignor    string            `json:"assignor"`
	InstanceID  string            `json:"instance_id"`
	Limit       int               `json:"limit"`
	Member      int               `json:"member"`
	Name        string            `json:"name"`
	Value       string            `json:"value"`
}

// Progress is what a group member has and what it read since it was last asked.
type Progress struct {
	Assigned []int32  `json:"assigned"`
	Records  []Record `json:"records"`
	Failure  string   `json:"failure"`
}

// Member is a consumer in a group that polls in the background and commits what it has read, after each poll.
type Member interface {
	Progress() Progress
	Leave() error
}

// Client is one Kafka client library fitted to the contract of the tests.
type Client interface {
	Produce(Request) error
	Consume(Request) ([]Record, error)
	OffsetForTimestamp(Request) (*int64, error)
	CreateTopic(Request) error
	DeleteTopic(Request) error
	Partitions(Request) ([]int32, error)
	Join(Request) (Member, error)
	Committed(Request) (map[int32]int64, error)
	CreatePartitions(Request) error
	Config(Request) (*string, error)
	SetConfig(Request) error
	DeleteRecords(Request) error
	Groups(Request) ([]string, error)
	DeleteGroup(Request) error
}

// Version tells which version of a module this program was built with.
func Version(module string) string {
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, dependency := range info.Deps {
			if dependency.Path == module {
				return dependency.Version
			}
		}
	}
	return "unknown"
}

// Serve answers calls until the input ends.
func Serve(client Client, version string) {
	members := map[int]Member{}
	input := bufio.NewReaderSize(os.Stdin, 1<<20)
	output := json.NewEncoder(os.Stdout)
	for {
		line, err := input.ReadBytes('\n')
		if err != nil {
			return
		}
		var request Request
		var result any
		if err = json.Unmarshal(line, &request); err == nil {
			result, err = answer(client, version, members, request)
		}
		if err != nil {
			err = output.Encode(map[string]any{"error": err.Error()})
		} else {
			err = output.Encode(map[string]any{"result": result})
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
}

func answer(client Client, version string, members map[int]Member, request Request) (any, error) {
	switch request.Call {
	case "version":
		return version, nil
	case "produce":
		return nil, client.Produce(request)
	case "consume":
		return client.Consume(request)
	case "offset_for_timestamp":
		return client.OffsetForTimestamp(request)
	case "create_topic":
		return nil, client.CreateTopic(request)
	case "delete_topic":
		return nil, client.DeleteTopic(request)
	case "partitions":
		return client.Partitions(request)
	case "committed":
		return client.Committed(request)
	case "create_partitions":
		return nil, client.CreatePartitions(request)
	case "config":
		return client.Config(request)
	case "set_config":
		return nil, client.SetConfig(request)
	case "delete_records":
		return nil, client.DeleteRecords(request)
	case "groups":
		return client.Groups(request)
	case "delete_group":
		return nil, client.DeleteGroup(request)
	case "join":
		member, err := client.Join(request)
		if err != nil {
			return nil, err
		}
		handle := len(members) + 1
		members[handle] = member
		return handle, nil
	case "progress":
		return members[request.Member].Progress(), nil
	case "leave":
		return nil, members[request.Member].Leave()
	}
	return nil, fmt.Errorf("unknown call %q", request.Call)
}
